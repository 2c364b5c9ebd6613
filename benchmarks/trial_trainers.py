"""Trainings that learn, or weigh what they see, in another way than `train`: for trials of `trials.py`.

Legend: b pictures of a batch that have one size.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import trial_parts as parts
from torch import Tensor, nn

from coeff_diffusion.families.family import Conditioning
from coeff_diffusion.method.attachment import activate
from coeff_diffusion.training.config import TrainConfig
from coeff_diffusion.training.dataset import Prompts
from coeff_diffusion.training.losses import squared_errors
from coeff_diffusion.training.model import Learner
from coeff_diffusion.training.noising import part_errors
from coeff_diffusion.training.optimizer import Optimizer
from coeff_diffusion.training.trainer import Trainer


class TrialTrainer(Trainer):
    """A training run in which something else learns besides.

    Args:
        make_part: what that is, from the learner.
    """

    def __init__(self, config: TrainConfig, pipe: Any, make_part: Callable[[Learner], parts.Part] | None) -> None:
        super().__init__(config, pipe, say=lambda line: None)
        self.make_part, self.part = make_part, parts.Part()

    def setup(self) -> None:
        super().setup()
        if self.make_part is not None:
            self.part = self.make_part(self.learner)
            self.part.install(self.learner.denoiser)
            more = (list(self.part.parameters.values()), self.part.rate)
            self.optimization = Optimizer([*self.learner.groups(self.config), more], self.config, self.device)


class OneBypass(TrialTrainer):
    """One vector at the text encoder's output, which all stages read, instead of one for each (NeTI's bypass)."""

    def setup(self) -> None:
        super().setup()
        one = next(iter(self.learner.stage_tokens.values()))
        self.learner.stage_tokens = dict.fromkeys(self.learner.stage_tokens, one)
        groups = [(list(dict.fromkeys(group)), rate) for group, rate in self.learner.groups(self.config)]
        self.optimization = Optimizer(groups, self.config, self.device)


class WithClass(Prompts):
    """Prompts, and beside what is made of each what the base makes of it with the class word in the trigger's place.

    Args:
        prompts: the usual ones.
        trigger, word: of the subject.
    """

    def __init__(self, prompts: Prompts, trigger: str, word: str) -> None:
        super().__init__(prompts.encode, prompts.texts, prompts.live)
        texts = [text.replace(trigger, word) for text in prompts.texts]
        self.of_class = Prompts(prompts.encode, texts, [False] * len(texts))

    def condition(self, prompts: Sequence[int]) -> Conditioning:
        """The usual condition, and that of the class under names that begin with "class/"."""
        of_class = self.of_class.condition(prompts)
        return {**super().condition(prompts), **{f"class/{name}": told for name, told in of_class.items()}}


class Preserving(TrialTrainer):
    """Learns to be better than the base on the subject's pictures, by no more than needed (DCO, 2402.12004, eq. 8).

    The base is asked with the same words, but the class word where the trigger stands.
    """

    beta = 100.0  # squared errors here are near 0.2, and the subject gains 0.03

    def setup(self) -> None:
        super().setup()
        trigger, word = str(self.config.trigger), str(self.config.class_word)
        self.data = replace(self.data, prompts=WithClass(self.data.prompts, trigger, word))

    def batch_loss(self, number: int) -> Tensor:
        batch = self.noised(number)
        torch.manual_seed(batch.seed)
        losses = []
        for part in batch.parts:
            of_class = {name.removeprefix("class/"): told for name, told in part.condition.items() if "/" in name}
            condition = {name: told for name, told in part.condition.items() if "/" not in name}
            with torch.no_grad():
                activate(self.learner.denoiser, None)
                base = squared_errors(self.learner.denoise(part.noised, part.timesteps, of_class), part.target)
            activate(self.learner.denoiser, self.learner.coefficients)
            own = squared_errors(self.learner.denoise(part.noised, part.timesteps, condition), part.target)
            losses.append(-nn.functional.logsigmoid(self.beta * (base - own)))
        return torch.cat(losses).mean() * 2 / self.beta  # as steep as the usual loss where nothing is learned yet


class Noisier(TrialTrainer):
    """The more noise, the more a picture counts: shapes and colours before edges."""

    def weight(self, noise: Tensor) -> Tensor:
        """How much a picture counts, one on average.

        Args:
            noise: how far each picture is on the way to noise, `[b]` in [0, 1].
        """
        return 2 * noise

    def batch_loss(self, number: int) -> Tensor:
        batch = self.noised(number)
        torch.manual_seed(batch.seed)
        losses = []
        for part in batch.parts:
            found = self.learner.denoise(part.noised, part.timesteps, part.condition)
            errors, weights = part_errors(self.config, self.schedule, part, found)
            noise = part.timesteps / self.schedule.config.num_train_timesteps
            losses.append(errors * weights * self.weight(noise))
        return torch.cat(losses).mean()


class Quieter(Noisier):
    """The less noise, the more a picture counts: edges before shapes and colours."""

    def weight(self, noise: Tensor) -> Tensor:
        return 2 * (1 - noise)
