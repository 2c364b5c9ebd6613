"""A plugin of pytest for other projects' tests: every UNet that they make has coefficients attached (`peer_suites.py`).

`COEFF_PEERS` says which: `without` none, `zero` those that must change nothing, `random` those that must show. Random
ones follow from the layer's path, so that a UNet that is saved and loaded has the same again.
"""

import functools
import os
import zlib
from typing import Any

import torch
from diffusers import UNet2DConditionModel  # before the checkout's conftest, which would put its own first
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from coeff_diffusion.method.attachment import activate, attach, layer_heads

MODES = ("without", "zero", "random")
STRENGTH = 0.3
# What the suites fetch from the Hub for their smallest pipelines.
TOKENIZERS = ("hf-internal-testing/tiny-random-clip", "peft-internal-testing/tiny-clip-text-2")
TEXT_ENCODERS = ("peft-internal-testing/tiny-clip-text-2",)


def pytest_configure(config: Any) -> None:
    """Before any test is collected."""
    mode = os.environ.get("COEFF_PEERS", "without")
    if mode not in MODES:
        raise ValueError(f"COEFF_PEERS is {mode!r}, expected one of {', '.join(MODES)}")
    if mode != "without":
        _attach_to_every_unet(mode)
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        _stand_in(CLIPTokenizer, TOKENIZERS, _tokenizer)
        for kind in (CLIPTextModel, CLIPTextModelWithProjection):
            _stand_in(kind, TEXT_ENCODERS, functools.partial(_text_encoder, kind))


def coefficients(unet: Any, mode: str) -> dict[str, torch.Tensor]:
    """The coefficients of a mode by attention path, on the CPU."""
    found = {}
    for path, heads in layer_heads(unet).items():
        generator = torch.Generator("cpu").manual_seed(zlib.crc32(path.encode()))
        coeff = torch.randn(heads, heads, generator=generator, device="cpu")
        found[path] = coeff * (STRENGTH if mode == "random" else 0.0)
    return found


def _attach_to_every_unet(mode: str) -> None:
    init = UNet2DConditionModel.__init__

    @functools.wraps(init)
    def attached(self: Any, *arguments: Any, **options: Any) -> None:
        init(self, *arguments, **options)
        if type(self) is UNet2DConditionModel:
            attach(self, trainable=False)
            activate(self, coefficients(self, mode), device="cpu")  # the weights may not be anywhere yet

    UNet2DConditionModel.__init__ = attached


def _stand_in(kind: Any, names: tuple[str, ...], make: Any) -> None:
    """Without the Hub: let `kind.from_pretrained` of some names give what `make` makes, of the same sizes."""
    fetch = kind.from_pretrained.__func__

    def from_pretrained(cls: Any, name: Any, *arguments: Any, **options: Any) -> Any:
        return make() if name in names else fetch(cls, name, *arguments, **options)

    kind.from_pretrained = classmethod(from_pretrained)


def _tokenizer() -> CLIPTokenizer:
    """A token for each byte, in CLIP's form."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=77)


def _text_encoder(kind: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=1000, hidden_size=32, intermediate_size=37, num_hidden_layers=5, num_attention_heads=4,
        projection_dim=32, bos_token_id=0, eos_token_id=2, pad_token_id=1, hidden_act="gelu",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(config).eval()
