"""Which subjects act at a step of sampling, and on which of its prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coeff_diffusion.inference.trigger import canonical
from coeff_diffusion.method.hosts.patches import Options, Shared
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError
from coeff_diffusion.subject.layer_strengths import LayerStrengths

from .prompts import KEY, Prompt


@dataclass(frozen=True)
class Step:
    """What is known of a step of sampling.

    Attributes:
        prompts: of its positive conditionings, by ComfyUI's number for each; None where it is not known.
    """

    sigma: float
    prompts: Mapping[Any, Prompt | None]

    @classmethod
    def of(cls, options: Options) -> "Step":
        """What `PromptWatch` has told; of a model that is called without a sampler, its noise alone."""
        return options.get(KEY) or cls(float(options["sigmas"][0]), {})

    def in_batch(self, options: Options) -> Sequence[Prompt | None]:
        """The prompt of each part of the batch; None where it is not known, and for negative ones."""
        return [self.prompts.get(one) for one in options.get("uuids", [None] * len(options["cond_or_uncond"]))]


@dataclass(frozen=True, eq=False)
class Acting(Shared):
    """A subject and when it acts.

    Attributes:
        gated: acts where the prompt has the trigger; else everywhere.
        sigmas: the noise at which it begins and ends, from high to low.
    """

    coefficients: Coefficients
    strength: float
    gated: bool
    layers: LayerStrengths
    sigmas: tuple[float, float]

    @property
    def trigger(self) -> str:
        return canonical(self.coefficients.info.trigger)

    def strengths(self, options: Options) -> list[float]:
        """Of each prompt in the batch. The rows of a negative prompt are treated as those that they guide.

        Raises:
            CoefficientsError: it depends on a prompt that is not known.
        """
        strength, step = self.now(options), Step.of(options)
        if not (self.gated and strength):
            return [strength] * len(options["cond_or_uncond"])
        anywhere = any(self.calls(prompt) for prompt in step.prompts.values())
        return [
            strength * (anywhere if uncond else self.calls(prompt))
            for uncond, prompt in zip(options["cond_or_uncond"], step.in_batch(options), strict=True)
        ]

    def now(self, options: Options) -> float:
        """The strength at this step."""
        begin, end = self.sigmas
        return self.strength if end <= Step.of(options).sigma <= begin else 0.0

    def calls(self, prompt: Prompt | None) -> bool:
        """Whether a prompt has the trigger."""
        return self.trigger in self._known(prompt).called

    def places(self, options: Options) -> list[Tensor | None]:
        """Where the trigger's vectors stand in each prompt of the batch, `[T]`; None in negative ones.

        Raises:
            CoefficientsError: a prompt is not known.
        """
        prompts = Step.of(options).in_batch(options)
        return [
            None if uncond else self._known(prompt).places.get(self.trigger)
            for uncond, prompt in zip(options["cond_or_uncond"], prompts, strict=True)
        ]

    def _known(self, prompt: Prompt | None) -> Prompt:
        if prompt is None:
            raise CoefficientsError(
                f"the subject of {self.trigger!r} acts by what the prompt says, but that is not known: encode it with "
                "the CLIP that Apply Coeff Subject gives and hand the conditioning over as it is, without averaging, "
                'concatenating or zeroing; or set the gate to "always", for a subject without stage tokens'
            )
        return prompt
