"""Where the attention layers of a CLIP text encoder are, and what subjects call them.

Published checkpoints and LoRAs name them `text_model.encoder.layers.<n>.self_attn`, which is what a file says whatever
the installed transformers calls the modules.
"""

from collections.abc import Mapping
from typing import Any

from ..method.errors import AttachmentError
from ..method.sites import Site

MOST_LAYERS = 256  # of a text encoder by its config; XL's second one has 32
LAYERS, HEADS = 12, 8  # where a config names none, as in transformers


def text_heads(name: str, config: Mapping[str, Any], unread: int = 0) -> dict[str, int]:
    """Heads of each layer of a text encoder by path ("text_encoder/text_model.encoder.layers.0.self_attn").

    Args:
        name: the component, "text_encoder" or "text_encoder_2".
        config: its `config.json`.
        unread: so many layers at its end change nothing that the denoiser reads, and are left out.

    Raises:
        ValueError: the config makes no text encoder.
    """
    layers, heads = config.get("num_hidden_layers", LAYERS), config.get("num_attention_heads", HEADS)
    if type(layers) is not int or not 0 < layers <= MOST_LAYERS or type(heads) is not int or heads < 1:
        raise ValueError(f"{layers!r} layers of {heads!r} heads, expected 1 to {MOST_LAYERS} and whole numbers")
    return {f"{name}/text_model.encoder.layers.{number}.self_attn": heads for number in range(layers - unread)}


def text_sites(name: str, encoder: Any, unread: int = 0) -> dict[str, Site]:
    """The attention layers of a text encoder that coefficients may belong to, by path, in their order.

    Raises:
        AttachmentError: it computes attention in a way in which there is nothing to recombine.
    """
    used = getattr(encoder.config, "_attn_implementation", "sdpa")
    if used != "sdpa":
        raise AttachmentError(
            f"the {name} computes its attention by {used!r}, which has no heads to recombine; call "
            f'pipe.{name}.set_attn_implementation("sdpa")'
        )
    layers = getattr(encoder, "text_model", encoder).encoder.layers
    heads = text_heads(name, encoder.config.to_dict(), unread)
    return {
        path: Site(path, layer.self_attn, count, "text")
        for (path, count), layer in zip(heads.items(), layers, strict=False)
    }
