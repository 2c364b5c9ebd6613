"""Which component of a pipeline a layer with coefficients belongs to.

Layers of the denoiser go by their attention path alone. Layers of a text encoder have its name in front:
`text_encoder/text_model.encoder.layers.0.self_attn`, in a subject as in its file.
"""

import re
from collections.abc import Mapping
from typing import Literal, TypeVar

LayerKinds = Literal["all", "self", "cross", "text", "all+text", "self+text", "cross+text"]
"""Kinds of layers: of the denoiser, all, those that look at the picture itself or those that look at the text; "text"
is those of the text encoders, which are no part of "all"."""

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
LAYER_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
PLACE = re.compile(rf"(({'|'.join(TEXT_ENCODERS)})/)?{LAYER_NAME.pattern}")

Value = TypeVar("Value")


def text_encoder_of(path: str) -> str:
    """The text encoder that a layer belongs to; empty where it is one of the denoiser's."""
    component, found, _ = path.partition("/")
    return component if found else ""


def of_text_encoder(values: Mapping[str, Value], name: str) -> dict[str, Value]:
    """Those of the values by path that belong to the layers of a text encoder; of the denoiser's, where it is empty."""
    return {path: value for path, value in values.items() if text_encoder_of(path) == name}
