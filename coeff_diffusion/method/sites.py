"""Where the attention layers of a network are."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from .errors import AttachmentError

Kind = Literal["self", "cross", "joint", "text"]
Stage = Literal["down", "mid", "up", ""]
STAGES: dict[str, Stage] = {"down_blocks": "down", "mid_block": "mid", "up_blocks": "up"}
HEADS = ("heads", "num_heads", "num_attention_heads")  # what diffusers' attention classes call it


@dataclass(frozen=True)
class Site:
    """An attention layer that can be recombined."""

    path: str
    """Of the module in its network, for example `down_blocks.0.attentions.0.transformer_blocks.0.attn1`."""
    module: nn.Module
    """What computes the layer, and calls `scaled_dot_product_attention` once to do so."""
    heads: int
    """The size of the layer's matrix of coefficients."""
    kind: Kind
    """Attends to the picture, to the text, or to both at once, the text in projections of its own; "text" is a layer
    of a text encoder."""
    stage: Stage = ""
    """Part of a UNet; empty in networks that have no such parts."""


def find_sites(model: Any) -> dict[str, Site]:
    """All attention layers of a diffusers model by path, in the model's own order.

    The paths are the keys of the model's `attn_processors`, without `.processor`.

    Raises:
        AttachmentError: it has none.
    """
    model = unwrapped(model)
    found = [(path, module) for path, module in model.named_modules() if path and hasattr(module, "get_processor")]
    if not found:
        raise AttachmentError(
            f"{type(model).__name__} has no attention layers that are known from diffusers, expected a UNet or "
            "transformer of diffusers; to recombine another network, give its layers to attach_heads(), and let "
            "trace_sites() find them"
        )
    return {
        path: Site(path, module, _heads(path, module), _kind(path, module), stage_of(path)) for path, module in found
    }


def text_stages(sites: Iterable[Site]) -> list[str]:
    """The parts of a UNet that read the text, by path ("down_blocks.0", "mid_block"), in the network's own order."""
    reading = [site.path.split(".") for site in sites if site.kind == "cross" and site.stage]
    return list(dict.fromkeys(".".join(path[: 1 if path[0] == "mid_block" else 2]) for path in reading))


def unwrapped(model: Any) -> Any:
    """The model itself where `torch.compile` has wrapped it."""
    return getattr(model, "_orig_mod", model)


def _heads(path: str, module: nn.Module) -> int:
    for name in HEADS:
        if isinstance(heads := getattr(module, name, None), int):
            return heads
    raise AttachmentError(f"{path} ({type(module).__name__}) does not say how many heads it has")


def _kind(path: str, module: nn.Module) -> Kind:
    if getattr(module, "add_k_proj", None) is not None and not getattr(module, "only_cross_attention", False):
        return "joint"
    name = path.rpartition(".")[2]
    return "cross" if getattr(module, "is_cross_attention", name == "attn2" or "cross" in name) else "self"


def stage_of(path: str) -> Stage:
    """Which part of a UNet a module belongs to."""
    return STAGES.get(path.partition(".")[0], "")
