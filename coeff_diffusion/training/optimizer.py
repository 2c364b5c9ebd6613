"""From a loss to an update: AdamW with a rate for each kind of parameter, its schedule, loss scaling for float16."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from ..subject.errors import shown
from .config import TrainConfig
from .tensor_file import MAX_STEP, DamagedFileError, is_count, is_finite


class Optimizer:
    """Everything that turns gradients into updates.

    Args:
        groups: parameters that learn at one rate, each with it; empty ones are left out.
        config: resolved settings.
        device: where the parameters are.
    """

    def __init__(
        self, groups: Sequence[tuple[Sequence[nn.Parameter], float]], config: TrainConfig, device: torch.device
    ) -> None:
        self.parameters = [parameter for parameters, _ in groups for parameter in parameters]
        self.max_grad_norm = config.max_grad_norm
        self.optimizer = torch.optim.AdamW(
            [{"params": list(parameters), "lr": rate} for parameters, rate in groups if parameters],
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.adam_weight_decay,
            eps=config.adam_epsilon,
        )
        self.lr_scheduler = get_scheduler(
            config.lr_scheduler,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.mixed_precision == "fp16")

    @property
    def learning_rates(self) -> list[float]:
        """The rates of the next update: of coefficients, token and stage tokens, as far as they are trained."""
        return [float(rate) for rate in self.lr_scheduler.get_last_lr()]

    def update(
        self, losses: Sequence[Callable[[], Tensor]], average: Callable[[Tensor], Tensor] | None = None
    ) -> float:
        """One update from the mean of several losses; returns that mean.

        Nothing is changed where the mean is not finite. Gradients that overflowed float16 leave the update out, as the
        schedule of the learning rates does with them.

        Args:
            losses: computed and differentiated one after the other, so that only one of them is in memory.
            average: takes a tensor to its average over all processes, where there are several.
        """
        total = torch.zeros((), device=self.parameters[0].device)
        for loss in losses:
            value = loss() / len(losses)
            self.scaler.scale(value).backward()
            total += value.detach()
        return self.apply(total, average)

    def apply(self, total: Tensor, average: Callable[[Tensor], Tensor] | None = None) -> float:
        """The update from gradients that are there already; see `update`.

        Args:
            total: the loss that these are the gradients of.
        """
        if average is not None:
            total = average(total)
            for parameter in self.parameters:
                parameter.grad = None if parameter.grad is None else average(parameter.grad)
        if math.isfinite(float(total)):
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)
            scale = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.scaler.get_scale() >= scale:  # it falls when gradients overflowed
                self.lr_scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(total)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        parts = {"optimizer": self.optimizer, "lr_scheduler": self.lr_scheduler, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Only what moves is taken from it; the rest are the settings.

        Raises:
            DamagedFileError: a part is missing or cannot be of this optimizer; nothing is changed then.
        """
        schedule, scaler = state.get("lr_scheduler"), state.get("scaler")
        done = schedule.get("last_epoch") if isinstance(schedule, dict) else None
        if not is_count(done):
            raise DamagedFileError(f"its schedule is at step {shown(done)}")
        moments = {int(index): self._moments(index, found) for index, found in state["optimizer"]["state"].items()}
        scaling = self._scaling(scaler if isinstance(scaler, dict) else {})
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.scaler.load_state_dict(scaling)
        rates = [
            base * factor(done)
            for base, factor in zip(self.lr_scheduler.base_lrs, self.lr_scheduler.lr_lambdas, strict=True)
        ]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        moved = {"last_epoch": done, "_step_count": done + 1, "_last_lr": rates}
        self.lr_scheduler.load_state_dict({**self.lr_scheduler.state_dict(), **moved})

    def _moments(self, index: int, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """AdamW's means of one parameter, if they can be that."""
        shape = self.parameters[index].shape if index < len(self.parameters) else None
        shapes = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if shapes != {name: tensor.shape for name, tensor in found.items()}:
            raise DamagedFileError(f"its means of parameter {index} have other names or shapes")
        if not 0 <= float(found["step"]) <= MAX_STEP or bool((found["exp_avg_sq"] < 0).any()):
            raise DamagedFileError(f"its means of parameter {index} cannot be")
        return dict(found)

    def _scaling(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """The state of the loss scaling, if it can be that; empty where nothing is scaled."""
        own: dict[str, Any] = self.scaler.state_dict()
        if not own:
            return {}
        scale, tracker = found.get("scale"), found.get("_growth_tracker")
        if not is_finite(scale) or not 0 < scale < 2**64 or not is_count(tracker):
            raise DamagedFileError(f"its loss scaling is {shown(found)}")
        return {**own, "scale": float(scale), "_growth_tracker": tracker}
