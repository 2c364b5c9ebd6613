"""What the nodes ask of ComfyUI, and no more: a stand-in that tests run on where there is no ComfyUI.

The contract, which `test_real_comfyui.py` holds against a checkout:

MODEL   `clone()` copies `model_options` deeply; `get_model_object(name)` gives the parts "diffusion_model" and
        "model_sampling"; `set_model_attn1_replace(patch, block_name, number, transformer_index)` and
        `set_model_attn2_replace` put a patch into `model_options["transformer_options"]["patches_replace"]["attn1"]`
        under `(block_name, number, transformer_index)`; `set_model_attn2_patch(patch)` adds one to
        `["patches"]["attn2_patch"]`; `add_wrapper_with_key`, `get_wrappers` and `remove_wrappers_with_key` keep
        wrappers by type and key.
layer   attn2_patch: `patch(n, context, value, extra_options)` returns the first three, before the projections.
        attn1, attn2: `patch(q, k, v, extra_options)` stands between the projections, `[B, T, H * D]`, and `to_out`.
        `extra_options` are the transformer options but for the patches, with "n_heads", "block" = ("input", 4),
        "sigmas", and for each part of the batch its "cond_or_uncond" (0: prompt, 1: negative prompt) and "uuids".
step    wrappers of "calc_cond_batch": `wrapper(executor, model, conds, x_in, timestep, model_options)`; `conds` is
        [positive, negative], lists of dicts that hold what stands in the conditioning, "cross_attn" and "uuid".
CLIP    `clone()`; `tokenizer.clip_l.tokenizer` is a tokenizer of transformers; `tokenize(text)` gives
        `{"l": [[(token, weight), ...], ...]}`, a token being a number or a vector; `patcher.add_object_patch` exchanges
        `cond_stage_model.encode_token_weights(tokens)`, which returns (text, pooled, extra), and `extra` goes into
        the conditioning.
"""

import copy
import sys
import types
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

WIDTH, TEXT, HEADS = 16, 12, 4


class CrossAttention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.heads = HEADS
        self.to_q, self.to_out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.to_k, self.to_v = nn.Linear(context, WIDTH, bias=False), nn.Linear(context, WIDTH, bias=False)


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(WIDTH), CrossAttention(TEXT)

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        told = {key: value for key, value in options.items() if key not in ("patches", "patches_replace")}
        told |= {"n_heads": HEADS, "attn_precision": None}
        for name, n, text in (("attn1", x, x), ("attn2", x, context)):
            layer, value = getattr(self, name), text
            for patch in options.get("patches", {}).get(f"{name}_patch", ()):
                n, text, value = patch(n, text, value, told)
            projected = layer.to_q(n), layer.to_k(text), layer.to_v(value)
            patches = options.get("patches_replace", {}).get(name, {})
            block = options["block"]
            patch = patches.get((*block, options["block_index"]), patches.get(block))
            x = x + layer.to_out(patch(*projected, told) if patch else optimized_attention(*projected, HEADS))
        return x


def optimized_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
    """ComfyUI's attention function, `comfy.ldm.modules.attention.optimized_attention`."""
    parts = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    return scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        for index, block in enumerate(self.transformer_blocks):
            x = block(x, context, {**options, "block_index": index})
        return x


class UNetModel(nn.Module):
    """Two levels of one residual block each, attention in the first and in the middle; 8 attention layers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_res_blocks = [1, 1]
        spot = nn.Identity
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Conv2d(4, 4, 3)]), nn.ModuleList([spot(), SpatialTransformer()]),
             nn.ModuleList([spot()]), nn.ModuleList([spot()])]
        )  # fmt: skip
        self.out = nn.Sequential(spot(), nn.Conv2d(4, 4, 3))
        self.middle_block = nn.ModuleList([spot(), SpatialTransformer(), spot()])
        self.output_blocks = nn.ModuleList(
            [nn.ModuleList([spot()]), nn.ModuleList([spot()]), nn.ModuleList([spot(), SpatialTransformer()]),
             nn.ModuleList([spot(), SpatialTransformer()])]
        )  # fmt: skip

    def forward(self, x: Tensor, context: Tensor, options: dict[str, Any]) -> Tensor:
        ways = (("input", self.input_blocks), ("middle", [self.middle_block]), ("output", self.output_blocks))
        for way, blocks in ways:
            for number, block in enumerate(blocks):
                for layer in block:
                    if isinstance(layer, SpatialTransformer):
                        x = layer(x, context, {**options, "block": (way, number)})
        return x


class ModelPatcher:
    """MODEL, or what CLIP keeps its text encoder in."""

    def __init__(self, model: Any) -> None:
        self.model, self.model_options = model, {"transformer_options": {}}  # type: ignore[var-annotated]
        self.object_patches: dict[str, Any] = {}
        self.wrappers: dict[str, dict[str, list[Any]]] = {}

    def clone(self) -> "ModelPatcher":
        other = ModelPatcher(self.model)
        other.model_options, other.object_patches = copy.deepcopy(self.model_options), dict(self.object_patches)
        other.wrappers = {kind: {k: list(w) for k, w in some.items()} for kind, some in self.wrappers.items()}
        return other

    def get_model_object(self, name: str) -> Any:
        return self.object_patches.get(name, getattr(self.model, name))

    def add_object_patch(self, name: str, obj: Any) -> None:
        self.object_patches[name] = obj

    def set_model_attn1_replace(self, patch: Any, block_name: str, number: int, transformer_index: Any = None) -> None:
        self._replace("attn1", patch, block_name, number, transformer_index)

    def set_model_attn2_replace(self, patch: Any, block_name: str, number: int, transformer_index: Any = None) -> None:
        self._replace("attn2", patch, block_name, number, transformer_index)

    def _replace(self, name: str, patch: Any, *key: Any) -> None:
        replaced = self.model_options["transformer_options"].setdefault("patches_replace", {})
        replaced.setdefault(name, {})[tuple(part for part in key if part is not None)] = patch

    def set_model_attn2_patch(self, patch: Any) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault("attn2_patch", []).append(patch)

    def add_wrapper_with_key(self, wrapper_type: str, key: str, wrapper: Any) -> None:
        self.wrappers.setdefault(wrapper_type, {}).setdefault(key, []).append(wrapper)

    def get_wrappers(self, wrapper_type: str, key: str) -> list[Any]:
        return self.wrappers.get(wrapper_type, {}).get(key, [])

    def remove_wrappers_with_key(self, wrapper_type: str, key: str) -> None:
        self.wrappers.get(wrapper_type, {}).pop(key, None)


class SDTokenizer:
    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()

    def tokenize_with_weights(self, text: str) -> list[list[tuple[Any, float]]]:
        start, *ids, end = self.tokenizer(text)["input_ids"]
        return [[(one, 1.0) for one in [start, *ids, *[end] * (20 - 1 - len(ids))]]]


class SD1Tokenizer:
    def __init__(self) -> None:
        self.clip_l = SDTokenizer()

    def tokenize_with_weights(self, text: str) -> dict[str, Any]:
        return {"l": self.clip_l.tokenize_with_weights(text)}


class SD1ClipModel:
    """A text encoder that is its table of embeddings."""

    def __init__(self) -> None:
        table = nn.Embedding(1_000, TEXT)
        transformer = types.SimpleNamespace(get_input_embeddings=lambda: table)
        self.clip_l, self.table = types.SimpleNamespace(transformer=transformer), table

    def encode_token_weights(self, token_weight_pairs: dict[str, Any]) -> tuple[Tensor, None]:
        flat = [token for chunk in token_weight_pairs["l"] for token, _ in chunk]
        rows = [token if isinstance(token, Tensor) else self.table.weight[token] for token in flat]
        return torch.stack(rows)[None].detach(), None


class CLIP:
    def __init__(self, model: SD1ClipModel | None = None) -> None:
        self.cond_stage_model = model or SD1ClipModel()
        self.tokenizer, self.patcher = SD1Tokenizer(), ModelPatcher(self.cond_stage_model)

    def clone(self) -> "CLIP":
        other = CLIP(self.cond_stage_model)
        other.tokenizer, other.patcher = self.tokenizer, self.patcher.clone()
        return other

    def tokenize(self, text: str) -> dict[str, Any]:
        return self.tokenizer.tokenize_with_weights(text)


def encode(clip: CLIP, text: str) -> list[list[Any]]:
    """What the stock node CLIP Text Encode makes: a CONDITIONING."""
    read, pooled, *extra = clip.patcher.get_model_object("encode_token_weights")(clip.tokenize(text))
    return [[read, {"pooled_output": pooled, **(extra[0] if extra else {})}]]


class ModelSampling:
    def percent_to_sigma(self, percent: float) -> float:
        return 1e9 if percent <= 0 else 10 * (1 - percent)


def new_model() -> ModelPatcher:
    torch.manual_seed(0)
    return ModelPatcher(types.SimpleNamespace(diffusion_model=UNetModel(), model_sampling=ModelSampling()))


@torch.no_grad()
def step(model: ModelPatcher, x: Tensor, positive: Any, negative: Any = (), sigma: float = 5.0) -> Tensor:
    """One step of sampling: the batch of all prompts, `[P * B, N, C]`, positive ones first, of B rows each."""

    def calc_cond_batch(model_: Any, conds: Any, x_in: Tensor, timestep: Tensor, model_options: Any) -> Tensor:
        flat = [(one, number) for number, some in enumerate(conds) for one in some]
        options = {
            **model_options["transformer_options"],
            "cond_or_uncond": [number for _, number in flat],
            "uuids": [one["uuid"] for one, _ in flat],
            "sigmas": timestep,
        }
        context = torch.cat([one["cross_attn"].expand(len(x_in), -1, -1) for one, _ in flat])
        found: Tensor = model.model.diffusion_model(x_in.repeat(len(flat), 1, 1), context, options)
        return found

    call: Callable[..., Tensor] = calc_cond_batch
    for wrapper in [one for some in model.wrappers.get("calc_cond_batch", {}).values() for one in some]:
        call = _wrapped(wrapper, call)
    conds = [
        [{**extra, "cross_attn": text, "uuid": uuid.uuid4()} for text, extra in one] for one in (positive, negative)
    ]
    return call(None, conds, x, torch.full((len(x),), sigma), model.model_options)


def _wrapped(wrapper: Any, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *args: wrapper(call, *args)


class FolderPaths(types.ModuleType):
    """ComfyUI's module `folder_paths`, over one folder."""

    def __init__(self, models_dir: str = "models") -> None:
        super().__init__("folder_paths")
        self.models_dir = models_dir
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}

    def get_filename_list(self, folder_name: str) -> list[str]:
        folders, endings = self.folder_names_and_paths[folder_name]
        files = [path for folder in folders for path in Path(folder).glob("*") if path.suffix in endings]
        return sorted(path.name for path in files)

    def get_full_path(self, folder_name: str, filename: str) -> str | None:
        paths = (Path(one) / filename for one in self.folder_names_and_paths[folder_name][0])
        return next((str(path) for path in paths if path.is_file()), None)

    def get_full_path_or_raise(self, folder_name: str, filename: str) -> str:
        path = self.get_full_path(folder_name, filename)
        if path is None:
            raise FileNotFoundError(filename)
        return path


@contextmanager
def modules() -> Iterator[None]:
    """The modules of ComfyUI that the nodes import."""
    attention = types.ModuleType("comfy.ldm.modules.attention")
    attention.optimized_attention = optimized_attention  # type: ignore[attr-defined]
    names = ("comfy", "comfy.ldm", "comfy.ldm.modules")
    stubs = {name: types.ModuleType(name) for name in names}
    added = {**stubs, attention.__name__: attention, "folder_paths": FolderPaths()}
    before = {name: sys.modules.get(name) for name in added}
    sys.modules.update(added)
    try:
        yield
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
