"""What the extension asks of Forge, and no more: a stand-in that tests run on, for Forge itself is no library.

The contract, from the source of lllyasviel/stable-diffusion-webui-forge (dfdcbab6):

script  `modules.scripts.Script` has hooks that get the values of the controls that `ui` returns: `process(p, *values)`,
        `process_batch(p, *values, batch_number, prompts, ...)` before prompts are encoded, and
        `process_before_every_sampling(p, *values, x, noise, c, uc)`, before which `p.sd_model.forge_objects` is a new
        copy. `AlwaysVisible` from `show` keeps it on both tabs. `modules.paths.models_path` is the models' folder,
        `modules.shared.state.interrupt()` ends what is being drawn; the extension's folder is importable.
p       `prompts` (and `hr_prompts` while `is_hr_pass`), `sd_model`, `extra_generation_params` for pictures' texts,
        `comment(text)`, and caches of encoded prompts, `cached_c` and so on, lists whose first entry None empties.
c       `batch[i]` are the texts of picture i, one unless it was split by AND; each one's `schedules` are what it is as
        sampling goes on, one unless it changes.
text    `sd_model.text_processing_engine`, on XL `..._l` and `..._g`: `process_texts(prompts)` gives each one's chunks,
        whose `tokens` have a start and an end and whose `fixes` are (offset behind the start, word);
        `embeddings.register_embedding_by_name(word, name)` teaches a word with `vec[embedding_key]` and `vectors`, or
        with None forgets it; `embeddings.word_embeddings` has them by name. `text_encoder.transformer.text_model`
        is CLIP's.
unet    `forge_objects.unet` is a patcher as ComfyUI's MODEL (`clone`, `model_options`, `set_model_attn1_replace`,
        `set_model_attn2_replace`, `set_model_attn2_patch`), its `model.diffusion_model` a UNet as ComfyUI's.
step    a batch is made of parts, "cond_or_uncond" of the transformer options tells which (0: prompts, 1: negative
        ones); each part has a row for each of the pictures, in their order. Texts of other lengths are lengthened: in
        a part at their end, among parts by repeating them.
layer   `backend.attention.attention_function(q, k, v, heads, mask)` is the attention that nobody patches.
"""

import sys
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfyui_contract as comfy
import torch
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor

CHUNK = 18  # tokens between start and end


class EmbeddingDatabase:
    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.word_embeddings = tokenizer, dict[str, Any]()
        self.ids: dict[str, list[int]] = {}

    def register_embedding_by_name(self, embedding: Any, name: str) -> Any:
        self.word_embeddings.pop(name, None)
        if embedding is not None:
            self.word_embeddings[name] = embedding
            self.ids[name] = self.tokenizer([name], truncation=False, add_special_tokens=False)["input_ids"][0]
        return embedding

    def find(self, tokens: Sequence[int], offset: int) -> tuple[Any, int]:
        known = sorted(self.word_embeddings, key=lambda name: len(self.ids[name]), reverse=True)
        for name in known:
            if list(tokens[offset : offset + len(self.ids[name])]) == self.ids[name]:
                return self.word_embeddings[name], len(self.ids[name])
        return None, 1


class TextEngine:
    """Encodes a prompt as the rows of a table, learned vectors in the place of words that it was taught."""

    def __init__(self, key: str = "clip_l") -> None:
        self.tokenizer, self.embedding_key = tiny_tokenizer(), key
        self.embeddings, self.table = EmbeddingDatabase(self.tokenizer), comfy.SD1ClipModel().table
        embeddings = types.SimpleNamespace(token_embedding=self.table)
        text_model = types.SimpleNamespace(embeddings=embeddings)
        self.text_encoder = types.SimpleNamespace(transformer=types.SimpleNamespace(text_model=text_model))

    def process_texts(self, texts: Sequence[str]) -> tuple[list[list[Any]], int]:
        return [self.chunks(text) for text in texts], 0

    def chunks(self, text: str) -> list[Any]:
        plain = text.replace("(", "").replace(")", "").replace(":1.2", "")  # emphasis is no text
        ids = self.tokenizer([plain], truncation=False, add_special_tokens=False)["input_ids"][0]
        tokens, fixes, chunks, position = list[int](), list[Any](), list[Any](), 0
        start, end = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id

        def close() -> None:
            nonlocal tokens, fixes
            full = [start, *tokens, *[end] * (CHUNK - len(tokens)), end]
            chunks.append(types.SimpleNamespace(tokens=full, fixes=fixes))
            tokens, fixes = [], []

        while position < len(ids):
            word, length = self.embeddings.find(ids, position)
            own = [ids[position]] if word is None else [0] * word.vectors
            if len(tokens) + len(own) > CHUNK:
                close()
            if word is not None:
                fixes.append((len(tokens), word))
            tokens += own
            position += length
        if tokens or not chunks:
            close()
        return chunks

    def __call__(self, text: str) -> Tensor:
        rows = []
        for chunk in self.chunks(text):
            row = self.table.weight[torch.tensor(chunk.tokens)].detach().clone()
            for offset, word in chunk.fixes:
                row[offset + 1 : offset + 1 + word.vectors] = word.vec[self.embedding_key]
            rows.append(row)
        return torch.cat(rows)  # [T, D]


class Model:
    """`p.sd_model`, a Stable Diffusion 1.x."""

    def __init__(self) -> None:
        self.text_processing_engine = TextEngine()
        self.original = comfy.new_model()
        self.forge_objects = types.SimpleNamespace(unet=self.original)


class Processing:
    """`p`: what one press of the button asks for."""

    cached_c: list[Any] = [None, None, None]  # noqa: RUF012 - shared by all, as in Forge
    cached_uc: list[Any] = [None, None, None]  # noqa: RUF012

    def __init__(self, sd_model: Model, prompts: Sequence[str], negative: str = "") -> None:
        self.sd_model, self.prompts, self.negative_prompts = sd_model, list(prompts), [negative] * len(prompts)
        self.extra_generation_params: dict[str, Any] = {}
        self.comments: dict[str, int] = {}

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def encode(self, prompts: Sequence[str], cache: list[Any]) -> Any:
        """Prompts as conditionings, from the cache where they are the same."""
        if cache[0] != tuple(prompts):
            cache[:2] = [tuple(prompts), conditioning(self.sd_model, prompts)]
        return cache[1]


def conditioning(sd_model: Model, prompts: Sequence[str]) -> Any:
    """A `MulticondLearnedConditioning`."""

    def text(prompt: str) -> Any:
        changing = prompt.strip("[]").split(":")[:2] if prompt.startswith("[") else [prompt]
        schedules = [types.SimpleNamespace(cond=sd_model.text_processing_engine(one)) for one in changing]
        return types.SimpleNamespace(schedules=schedules)

    return types.SimpleNamespace(batch=[[text(one) for one in prompt.split(" AND ")] for prompt in prompts])


@torch.no_grad()
def draw(script: Any, p: Processing, values: Sequence[Any], x: Tensor) -> Tensor | None:
    """One step of sampling as Forge comes to it, for `[B, N, C]`: prompts' part, `[B, N, C]`, then the negative ones'.
    None where the drawing was ended."""
    interrupted = sys.modules["modules.shared"].state
    interrupted.interrupted = False
    script.process(p, *values)
    p.sd_model.forge_objects = types.SimpleNamespace(unet=p.sd_model.original)
    script.process_batch(p, *values, batch_number=0, prompts=p.prompts, seeds=[0], subseeds=[0])
    c, uc = p.encode(p.prompts, p.cached_c), p.encode(p.negative_prompts, p.cached_uc)
    p.sd_model.forge_objects = types.SimpleNamespace(unet=p.sd_model.original)
    script.process_before_every_sampling(p, *values, x=x, noise=x, c=c, uc=uc)
    if interrupted.interrupted:
        return None
    return step(p.sd_model.forge_objects.unet, x, c, uc)


@torch.no_grad()
def step(unet: Any, x: Tensor, c: Any, uc: Any) -> Tensor:
    """The batch of both parts, negative prompts first as Forge orders them; given back with the prompts first."""
    parts = []
    for found in (uc, c):
        texts = [one[0].schedules[0].cond for one in found.batch]
        longest = max(map(len, texts))
        parts.append(torch.stack([torch.cat([one, one[-1:].repeat(longest - len(one), 1)]) for one in texts]))
    length = max(part.shape[1] for part in parts)
    context = torch.cat([part.repeat(1, length // part.shape[1], 1) for part in parts])
    options = {
        **unet.model_options.get("transformer_options", {}),
        "cond_or_uncond": [1, 0],
        "sigmas": torch.full((len(x),), 5.0),
    }
    found: Tensor = unet.model.diffusion_model(x.repeat(2, 1, 1), context, options)
    return torch.cat(found.chunk(2)[::-1])


@contextmanager
def modules(models: Path, extension: Path) -> Iterator[None]:
    """The modules of Forge that the extension imports, and its folder on the path."""

    class State:
        interrupted = False

        def interrupt(self) -> None:
            self.interrupted = True

    attention = types.ModuleType("backend.attention")
    attention.attention_function = lambda q, k, v, heads, mask: comfy.optimized_attention(q, k, v, heads)  # type: ignore[attr-defined]
    scripts, paths, shared = (types.ModuleType(f"modules.{name}") for name in ("scripts", "paths", "shared"))
    scripts.Script, scripts.AlwaysVisible = type("Script", (), {}), object()  # type: ignore[attr-defined]
    paths.models_path, shared.state = str(models), State()  # type: ignore[attr-defined]
    package = types.ModuleType("modules")
    package.scripts, package.paths, package.shared = scripts, paths, shared  # type: ignore[attr-defined]
    added = {one.__name__: one for one in (types.ModuleType("backend"), attention, package, scripts, paths, shared)}
    before = dict(sys.modules)
    sys.modules.update(added)
    sys.path.insert(0, str(extension))
    try:
        yield
    finally:
        sys.path.remove(str(extension))
        for name in [name for name in sys.modules if name not in before]:
            if name.startswith("lib_coeff_diffusion") or name in added:
                del sys.modules[name]
        sys.modules.update({name: before[name] for name in added if name in before})
