"""Which of the loaded subjects act, and how strongly on which row of a batch.

Legend: P pictures, B rows of the UNet's batch (P, or 2P with guidance: unconditional rows first, and P more, of the
prompts again, last, with perturbed attention guidance).
"""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Literal

from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.info import Gate as Gate  # a part of what this module offers
from ..subject.layer_strengths import LayerStrengths

GuidanceRows = Literal["both", "cond"]


@dataclass(frozen=True)
class Subject:
    """A loaded subject and when it acts."""

    coefficients: Coefficients
    gate: Gate


@dataclass(frozen=True)
class Choice:
    """How loaded subjects shall act (see `set_coefficients`).

    Attributes:
        strengths: by name, one mapping for all pictures or, with `per_sample`, one for each.
        gate: overrides the gate of every subject; None leaves each its own.
        layers, adapter_strength: factors on the strengths.
    """

    strengths: Sequence[Mapping[str, float]] = ({},)
    per_sample: bool = False
    gate: Gate | None = None
    guidance_rows: GuidanceRows = "both"
    layers: LayerStrengths = field(default_factory=LayerStrengths)
    adapter_strength: float = 1.0

    def check(self, loaded: Mapping[str, Subject]) -> None:
        """Whether these subjects can act so.

        Raises:
            CoefficientsError: they cannot.
        """
        if not self.strengths:
            raise CoefficientsError("per_sample is empty, expected one mapping per picture")
        unknown = sorted({name for one in self.strengths for name in one} - loaded.keys())
        if unknown:
            raise CoefficientsError(
                f"no subject {', '.join(map(repr, unknown))} is loaded; loaded are {sorted(loaded)}"
            )
        wrong = {name: value for one in self.strengths for name, value in one.items() if not math.isfinite(value)}
        if wrong:
            raise CoefficientsError(f"expected finite strengths, got {wrong}")
        if not math.isfinite(self.adapter_strength):
            raise CoefficientsError(f"adapter_strength is {self.adapter_strength}, expected a finite number")
        if problems := self.layers.problems():
            raise CoefficientsError("; ".join(problems))
        if self.gate not in (None, "trigger", "always"):
            raise CoefficientsError(f'gate is {self.gate!r}, expected "trigger", "always" or None')
        if self.guidance_rows not in ("both", "cond"):
            raise CoefficientsError(f'guidance_rows is {self.guidance_rows!r}, expected "both", "cond" or None')
        for name in {name for one in self.strengths for name, value in one.items() if value}:
            if self.is_gated(loaded[name]) and not loaded[name].coefficients.info.trigger.strip():
                raise CoefficientsError(f'{name!r} has no trigger to be gated by; give trigger="..." or gate="always"')

    def of_rows(
        self,
        rows: int,
        called: Sequence[Set[str] | None] | None,
        loaded: Mapping[str, Subject],
        perturbed: bool = False,
    ) -> Sequence[Mapping[str, float]]:
        """The strength of each subject in each row of a batch; a single entry where all rows are alike for certain.

        Args:
            called: the subjects that each picture's prompt calls up; None where it is not known.
            perturbed: whether the pipeline draws with perturbed attention guidance.

        Raises:
            CoefficientsError: it depends on prompts that are not known, or the numbers of pictures do not agree.
        """
        acting = {name for one in self.strengths for name, strength in one.items() if strength}
        gated = {name for name in acting if self.is_gated(loaded[name])}
        if not acting or not (gated or self.per_sample or self.guidance_rows == "cond"):
            return self.strengths[:1]
        if called is None or (gated and None in called):
            raise CoefficientsError(
                f"{', '.join(map(repr, sorted(gated or acting)))} acts by what the prompt says, but the prompt is not "
                "known: prompt_embeds were given, or another pipeline draws with the same network. Give prompts, load "
                'the subject into that pipeline, too, or set gate="always"'
            )
        pictures = len(called)
        if self.per_sample and len(self.strengths) != pictures:
            raise CoefficientsError(f"per_sample has {len(self.strengths)} entries, but the prompts make {pictures}")
        parts = parts_of(rows, pictures, perturbed)
        if parts is None:
            few = (1 + perturbed) * pictures
            raise CoefficientsError(
                f"the UNet got {rows} rows for {pictures} pictures, expected {few} or, guided, {few + pictures}"
            )
        strengths = self.strengths if self.per_sample else list(self.strengths) * pictures
        shown: list[Mapping[str, float]] = [
            {name: strength for name, strength in one.items() if name not in gated or name in (names or ())}
            for one, names in zip(strengths, called, strict=True)
        ]
        unguided: list[Mapping[str, float]] = shown if self.guidance_rows == "both" else [{}] * pictures
        return [one for by_prompt in parts for one in (shown if by_prompt else unguided)]

    def is_gated(self, subject: Subject) -> bool:
        """Whether the subject acts by its trigger alone."""
        return (self.gate or subject.gate) == "trigger"


def parts_of(rows: int, pictures: int, perturbed: bool) -> list[bool] | None:
    """Whether each part of a batch, a row for every picture, is drawn by the prompts; None where these are no parts.

    Args:
        perturbed: whether the pipeline draws with perturbed attention guidance.
    """
    parts, rest = divmod(rows, pictures)
    by_prompt = 1 + perturbed
    return [False] * (parts - by_prompt) + [True] * by_prompt if not rest and 0 <= parts - by_prompt <= 1 else None
