"""How strongly subjects act in which kind of attention layer."""

import math
from dataclasses import dataclass

from .setting import setting

STRENGTH_REACH = (0, 2)
"""How far the page's controls of a strength go: 0 is off, 1 as trained."""


@dataclass(frozen=True)
class LayerStrengths:
    """Factors on the strength of every subject, by kind of layer: 1 as it is, 0 leaves these layers to the base.

    A layer's factor is that of its kind times that of its part of the UNet; those of text encoders have their own.
    """

    self_attention: float = setting(
        1.0, flag="self_attention_strength", reach=STRENGTH_REACH, label="Self-attention",
        hint="Layers where the picture looks at itself",
    )  # fmt: skip
    """Factor on the strength of all subjects in the layers where the picture attends to itself; left out, 1."""
    cross_attention: float = setting(
        1.0, flag="cross_attention_strength", reach=STRENGTH_REACH, label="Cross-attention",
        hint="Layers where it looks at the prompt",
    )  # fmt: skip
    """The same in the layers where the picture attends to the prompt; left out, 1."""
    down: float = setting(
        1.0, flag="down_strength", label="Down blocks", hint="From fine to coarse", reach=STRENGTH_REACH
    )
    """The same in the layers on the UNet's way down, from fine to coarse; left out, 1."""
    mid: float = setting(1.0, flag="mid_strength", label="Middle block", hint="The coarsest", reach=STRENGTH_REACH)
    """The same in the layers in the UNet's middle; left out, 1."""
    up: float = setting(1.0, flag="up_strength", label="Up blocks", hint="From coarse to fine", reach=STRENGTH_REACH)
    """The same in the layers on the UNet's way up, from coarse to fine; left out, 1."""
    text: float = setting(
        1.0, flag="text_strength", label="Text encoder", hint="Layers that read the prompt", reach=STRENGTH_REACH
    )
    """The same in the layers of the text encoder, where a subject recombines its heads; left out, 1."""

    def factor(self, kind: str, stage: str) -> float:
        """The factor of an attention layer.

        Args:
            kind: "self", "cross", "joint", which attends to both and takes both factors, or "text", of a text encoder.
            stage: "down", "mid" or "up"; any other has none of its own.
        """
        factor: float = getattr(self, stage) if stage in ("down", "mid", "up") else 1.0
        if kind in ("self", "joint"):
            factor *= self.self_attention
        if kind in ("cross", "joint"):
            factor *= self.cross_attention
        if kind == "text":
            factor *= self.text
        return factor

    def changed(self) -> dict[str, float]:
        """The factors that are not 1, by name."""
        return {name: value for name, value in vars(self).items() if value != 1}

    def problems(self) -> list[str]:
        """What is wrong with the factors, one phrase each."""
        return [
            f"the factor on the strength in {name} layers is {value}, expected a finite number"
            for name, value in vars(self).items()
            if not math.isfinite(value)
        ]
