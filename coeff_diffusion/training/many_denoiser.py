"""One pass of a frozen denoiser for the pictures of many learners, each row with what its own learner has learned.

Shapes: B rows of a pass; H heads of a layer; T text positions, D their width; C, h, w channels and size of the latents.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..families.registry import denoiser_of
from ..families.shared_weights import shared_copy
from ..method.attachment import activate, attach_heads, attached_layers
from ..method.override import dropped
from ..method.text_offsets import at_positions, attach_offsets, set_offsets
from .model import PLACES, Learner
from .noising import NoisedBatch, NoisedPart


class _Asked(NamedTuple):
    """A part of a batch, what its learner has learned, and the place of the answer."""

    place: tuple[int, int]
    learner: Learner
    part: NoisedPart
    coeffs: Mapping[str, Tensor]  # [H, H] by path, some entries left out


class SharedDenoiser:
    """Answers for learners of one base that learn the same layers and stages.

    Rows do not mix in a denoiser, and each matrix reaches the rows of its learner alone: so do the gradients. What a
    learner gets is what its own denoiser would give, up to the rounding of larger batches.

    Args:
        pipe: the base, on the device and of the type that it is trained in.
        learner: one of the learners; all have parameters of the same names and shapes.
        dropout: chance that an entry of a matrix is left out of a pass.
        checkpointing: save memory by computing parts of each pass twice.
    """

    def __init__(self, pipe: Any, learner: Learner, dropout: float, checkpointing: bool = False) -> None:
        self.family, self.device, self.dtype, self.dropout = learner.family, learner.device, learner.dtype, dropout
        self.denoiser: Any = shared_copy(denoiser_of(pipe), learner.device, learner.dtype).eval()
        self.order: list[str] | None = None  # of the layers, as they run: in which the learner alone would draw
        if learner.coefficients:
            sites = self.family.sites(self.denoiser)
            attach_heads(self.denoiser, [sites[path] for path in learner.coefficients], trainable=False)
        if learner.stage_tokens:
            attach_offsets(self.denoiser, learner.stage_tokens)
        if checkpointing:
            self.denoiser.enable_gradient_checkpointing()

    def predict(self, asked: Sequence[tuple[Learner, NoisedBatch]]) -> list[list[Tensor]]:
        """What is predicted for each part of each learner's batch, `[b, C, h, w]`: one pass for each size there is."""
        groups: dict[torch.Size, list[_Asked]] = {}
        for number, (learner, batch) in enumerate(asked):
            generator = torch.Generator(self.device).manual_seed(batch.seed)
            for place, part in enumerate(batch.parts):
                one = _Asked((number, place), learner, part, self._dropped(learner, part, generator))
                groups.setdefault(part.noised.shape[1:], []).append(one)
        found = {
            one.place: answer for group in groups.values() for one, answer in zip(group, self._pass(group), strict=True)
        }
        return [[found[number, place] for place in range(len(batch.parts))] for number, (_, batch) in enumerate(asked)]

    def _pass(self, group: Sequence[_Asked]) -> Sequence[Tensor]:
        conditions = [dict(one.part.condition) for one in group]
        places = [condition.pop(PLACES, None) for condition in conditions]  # [b, T]
        if group[0].learner.coefficients:
            rows = [(one.coeffs, len(one.part.noised)) for one in group]
            coeffs = {
                path: torch.cat([own[path].expand(count, -1, -1) for own, count in rows])  # [B, H, H]
                for path in rows[0][0]
            }
            activate(self.denoiser, coeffs)
        if stages := list(group[0].learner.stage_tokens):
            with_places = [(one.learner.stage_tokens, own) for one, own in zip(group, places, strict=True)]
            set_offsets(
                self.denoiser,
                {
                    stage: torch.cat(
                        [at_positions(tokens[stage], own) for tokens, own in with_places if own is not None]
                    )
                    for stage in stages
                },  # [B, T, D]
            )
        noised = torch.cat([one.part.noised for one in group])
        timesteps = torch.cat([one.part.timesteps for one in group])
        condition = {name: torch.cat([own[name] for own in conditions]) for name in conditions[0]}
        answer = self.family.predict(self.denoiser, noised.to(self.dtype), timesteps, condition)
        return answer.split([len(one.part.noised) for one in group])

    def _dropped(self, learner: Learner, part: NoisedPart, generator: torch.Generator) -> dict[str, Tensor]:
        """A learner's matrices with entries left out, the very ones that it would leave out by itself."""
        if not self.dropout:
            return dict(learner.coefficients)
        if self.order is None:
            self.order = self._order(part) if learner.coefficients else []
        return {path: dropped(learner.coefficients[path], self.dropout, generator) for path in self.order}

    @torch.no_grad()
    def _order(self, part: NoisedPart) -> list[str]:
        """The layers in the order in which they run, found by running them."""
        order: list[str] = []
        handles = [
            module.register_forward_pre_hook(lambda *_, path=path: order.append(path))
            for path, module in attached_layers(self.denoiser).items()
        ]
        try:
            condition = {name: rows[:1] for name, rows in part.condition.items() if name != PLACES}
            self.family.predict(self.denoiser, part.noised[:1].to(self.dtype), part.timesteps[:1], condition)
        finally:
            for handle in handles:
                handle.remove()
        return order
