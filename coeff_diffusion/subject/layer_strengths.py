"""How strongly subjects act in which kind of attention layer."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LayerStrengths:
    """Factors on the strength of every subject, by kind of layer: 1 as it is, 0 leaves these layers to the base.

    A layer's factor is that of its kind times that of its part of the UNet.
    """

    self_attention: float = 1.0
    """Of the layers in which the picture attends to itself."""
    cross_attention: float = 1.0
    """Of the layers in which the picture attends to the prompt."""
    down: float = 1.0
    """Of the layers on the way down, from fine to coarse."""
    mid: float = 1.0
    """Of the layers in the middle, the coarsest."""
    up: float = 1.0
    """Of the layers on the way up, from coarse to fine."""

    def factor(self, path: str, is_cross_attention: bool) -> float:
        """The factor of the attention layer at `path` (such as `mid_block.attentions.0.transformer_blocks.0.attn1`)."""
        parts = {"down_blocks": self.down, "mid_block": self.mid, "up_blocks": self.up}
        kind = self.cross_attention if is_cross_attention else self.self_attention
        return kind * parts.get(path.split(".")[0], 1.0)

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
