"""Attention processors of diffusers in which there is nothing to recombine, and what to do about them."""

from typing import Any

from .errors import AttachmentError

SLICING = "attention slicing is on: call pipe.disable_attention_slicing()"
XFORMERS = "xFormers is on: call pipe.disable_xformers_memory_efficient_attention()"
LINEAR = "linear attention has no maps: choose other layers"
# None of these ever calls `scaled_dot_product_attention`. By name: not every version of diffusers has them all.
WITHOUT_SDPA = {
    "SlicedAttnProcessor": SLICING,
    "SlicedAttnAddedKVProcessor": SLICING,
    "XFormersAttnProcessor": XFORMERS,
    "XFormersAttnAddedKVProcessor": XFORMERS,
    "XFormersJointAttnProcessor": XFORMERS,
    "CustomDiffusionXFormersAttnProcessor": XFORMERS,
    "IPAdapterXFormersAttnProcessor": XFORMERS,
    "SanaLinearAttnProcessor2_0": LINEAR,
    "SanaMultiscaleAttnProcessor2_0": LINEAR,
    "PAGIdentitySanaLinearAttnProcessor2_0": LINEAR,
    "PAGCFGSanaLinearAttnProcessor2_0": LINEAR,
    **{
        name: f"call model.set_attn_processor({name}2_0(...)), the same by way of PyTorch's own attention"
        for name in (
            "AttnProcessor",
            "AttnAddedKVProcessor",
            "CustomDiffusionAttnProcessor",
            "IPAdapterAttnProcessor",
        )
    },
}


def remedy(processor: Any) -> str | None:
    """What to do about a processor that is known never to call SDPA; None where it may."""
    kind = type(processor)
    return WITHOUT_SDPA.get(kind.__name__) if kind.__module__.startswith("diffusers.") else None


def leaves_rows_out(processor: Any) -> bool:
    """Whether a processor attends for the first rows of a batch alone, as perturbed attention guidance does, which puts
    the values themselves in place of what the last rows would attend to.
    """
    kind = type(processor)
    return kind.__module__.startswith("diffusers.") and kind.__name__.startswith("PAG")


def check_calls(path: str, processor: Any, calls: int) -> None:
    """Make sure that a layer has called SDPA once, as all that is recombined has to.

    An IP-Adapter calls it for the text first, which is what is recombined, and then for its pictures.

    Args:
        processor: of the layer; None where it has none.

    Raises:
        AttachmentError: it has not. The message says what to do.
    """
    if calls == 1 or (calls > 1 and hasattr(processor, "to_k_ip")):
        return
    if calls > 1:
        advice = "choose other layers, or another processor"
    elif known := remedy(processor):
        advice = known
    elif hasattr(processor, "_attention_backend"):
        advice = 'another attention backend is on: call model.set_attention_backend("native")'
    else:
        advice = "remove what computes its attention instead, or choose other layers"
    who = path if processor is None else f"{path} ({type(processor).__name__})"
    raise AttachmentError(
        f"{who} cannot be recombined: it called scaled_dot_product_attention {calls} times, expected once; {advice}"
    )
