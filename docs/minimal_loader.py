"""Load a subject of coeff-diffusion (format version 1 or 2) where that package is not installed; paste it anywhere.

For Stable Diffusion 1.x, 2.x and XL. One subject per pipeline, acting on every prompt: the gate, which leaves prompts
without the trigger to the base, is left out, and so are the fast ways and most checks. Call
`load_subject(pipe, "my-dog.safetensors")`, then draw as always.
"""

import json
import re
import unicodedata

import torch
from safetensors import safe_open


class RecombinedAttention:
    """Attention processor: mixed[h] = sum_j (I + coeff)[h, j] maps[j], in float32 because signed weights cancel."""

    def __init__(self, coeff):
        self.weight = torch.eye(len(coeff)) + coeff.float()  # [H, H]: row = head that receives, column = map used

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        mask = attn.prepare_attention_mask(attention_mask, context.shape[1], len(context))
        query, key, value = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(x) for x in (query, key, value))  # [B*H, N or M, D]
        maps = attn.get_attention_scores(query, key, mask).unflatten(0, (-1, attn.heads)).float()  # [B, H, N, M]
        mixed = torch.einsum("hj,bjnm->bhnm", self.weight.to(maps.device), maps).flatten(0, 1)  # [B*H, N, M]
        output = attn.batch_to_head_dim((mixed @ value.float()).to(value.dtype))  # [B, N, H*D]
        return attn.to_out[1](attn.to_out[0](output))


def load_subject(pipe, path):
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if metadata.get("format") != "coeff-diffusion" or metadata.get("format_version") not in ("1", "2"):
        raise ValueError(f"{path} is no coeff-diffusion file of version 1 or 2")
    steps = sorted(name for name, tensor in tensors.items() if tensor.dtype == torch.int8)  # of version 2
    tensors |= {name: tensors[name] * scale for name, scale in zip(steps, tensors.pop("scales", ()), strict=True)}
    tokens = {name[:-6]: tensors.pop(name) for name in list(tensors) if name.endswith("/token")}  # [vectors, D] each
    stages = {name[5:-6]: tensors.pop(name) for name in list(tensors) if name.endswith(".token")}  # [vectors, D] each
    coeffs = {name.removeprefix("unet/").removesuffix(".coeff"): coeff for name, coeff in tensors.items()}
    layers = {path: attn for path, attn in pipe.unet.named_modules() if path in coeffs}
    wrong = [path for path, c in coeffs.items() if path not in layers or c.shape != (layers[path].heads,) * 2]
    wrong += [stage for stage in stages if stage not in dict(pipe.unet.named_modules())]
    wrong += [name for name in tokens if getattr(pipe, name, None) is None]
    if wrong:
        raise ValueError(f"{path} does not fit this base: {wrong[:3]}")
    for name, attn in layers.items():
        attn.set_processor(RecombinedAttention(coeffs[name]))
    if not tokens:
        return
    places = [f"<coeff_{i}>" for i in range(len(next(iter(tokens.values()))))]
    first = {name: teach(pipe, name, token, places) for name, token in tokens.items()}
    composed = lambda x: unicodedata.normalize("NFC", x)  # noqa: E731
    words = r"\s+".join(map(re.escape, composed(json.loads(metadata["info"])["trigger"]).split()))
    trigger, encode = re.compile(rf"(?<!\w){words}(?!\w)", re.IGNORECASE), pipe.encode_prompt
    swap = lambda x: trigger.sub("".join(places), composed(x)) if isinstance(x, str) else x  # noqa: E731
    read = lambda x: [swap(y) for y in x] if isinstance(x, list) else swap(x)  # noqa: E731
    seen = {}

    def encode_prompt(prompt, *args, **kw):
        texts = [swap(x) for x in ([prompt] if isinstance(prompt, str) else prompt)]
        ids = pipe.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        each = kw.get("num_images_per_prompt", args[1] if len(args) > 1 else 1)
        # [pictures, T]: where a vector of the trigger stands its number, else others
        seen["places"] = (ids - first[next(iter(tokens))]).repeat_interleave(each, 0)
        return encode(read(prompt), *map(read, args), **{k: read(v) for k, v in kw.items()})

    def add(vectors):
        """A hook that adds a stage's vectors to the text it reads, on the rows that have the prompt."""

        def hook(module, args, kwargs):
            text, places = kwargs["encoder_hidden_states"], seen["places"].to(vectors.device)
            added = sum((places == i)[..., None] * vector.float() for i, vector in enumerate(vectors)).to(text)
            unguided = torch.zeros_like(text[: len(text) - len(added)])
            return args, {**kwargs, "encoder_hidden_states": text + torch.cat([unguided, added])}

        return hook

    pipe.encode_prompt = encode_prompt
    for stage, vectors in stages.items():
        pipe.unet.get_submodule(stage).register_forward_pre_hook(add(vectors), with_kwargs=True)


def teach(pipe, name, token, places):
    """Let a text encoder read the placeholders as the vectors; the id of the first."""
    encoder, tokenizer = getattr(pipe, name), getattr(pipe, name.replace("text_encoder", "tokenizer"))
    first = len(tokenizer)
    tokenizer.add_tokens(places)
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder.get_input_embeddings().weight.data[first : first + len(token)] = token
    inner = getattr(encoder, "text_model", encoder)
    if getattr(inner, "eos_token_id", None) == 2:  # "where the highest id stands", which is a placeholder's now
        inner.eos_token_id = tokenizer.eos_token_id
    return first
