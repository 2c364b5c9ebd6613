"""LoRA and DoRA beside recombination: what is added to the outputs of attention's projections, for each row by itself.

    LoRA (arXiv 2106.09685):   y = W x + B A x
    DoRA (arXiv 2402.09353):   y = m / |W + B A| (W + B A) x            norms of the rows; m starts as |W|

PEFT computes the same, bit by bit (the tests hold one to the other), but for a whole batch at once. Here a strength can
differ from row to row, so that pictures whose prompt does not call a subject up stay the base's, bitwise.

Legend: B rows of the batch; R rank; I, O channels into a projection and out of it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from ..subject.adapter import Factors
from .errors import AttachmentError
from .own_forward import give_own_forward, take_own_forward
from .sites import Site, unwrapped

ATTRIBUTE = "_coeff_low_rank"
PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")


class Acting(NamedTuple):
    """Factors that act, and how strongly: on all rows alike, or `[B]`, on each of them."""

    factors: Factors
    strength: float | Tensor


class Projection:
    """A forward hook of one projection.

    Attributes:
        acting: what changes its output, one after another.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.acting: list[Acting] = []

    def __call__(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        for factors, strength in self.acting:
            change = self._change(layer, inputs[0], output, factors)  # [B, ..., O]
            output = output + change * self._of_rows(strength, change)
        return output

    def _change(self, layer: Any, x: Tensor, output: Tensor, factors: Factors) -> Tensor:
        down, up = factors.down.to(x.device, x.dtype), factors.up.to(x.device, x.dtype)
        change = linear(linear(x, down), up)
        if factors.magnitude is None:
            return change
        weight = layer.weight
        if not weight.is_floating_point():
            raise AttachmentError(
                f"{self.path} is rounded to eight bits, which a DoRA cannot change; load the base whole"
            )
        magnitude = factors.magnitude.to(x.device, x.dtype)
        with torch.no_grad():  # as in the paper: no gradient passes through the norm
            eye = torch.eye(down.shape[1], device=x.device, dtype=x.dtype)
            length = torch.linalg.norm(weight + linear(linear(eye, down), up).T, dim=1).to(x.dtype)  # [O]
        scale = magnitude / length
        bare = output if layer.bias is None else output - layer.bias
        return (scale - 1) * bare + scale * change

    def _of_rows(self, strength: float | Tensor, change: Tensor) -> float | Tensor:
        """The strength of each row; rows that hold several of a sample's, as frames of a video, have the sample's."""
        if isinstance(strength, float):
            return strength
        times, rest = divmod(len(change), len(strength))
        if rest:
            raise AttachmentError(f"{self.path} got {len(change)} rows, but there are strengths for {len(strength)}")
        of_rows = strength.to(change.device, change.dtype).repeat_interleave(times)
        return of_rows.view(-1, *(1,) * (change.ndim - 1))


class LowRank:
    """The hooks of one network; lives on it as an attribute until `detach_low_rank`."""

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self.layers = dict(layers)
        self.hooks = {path: Projection(path) for path in layers}
        self.handles: list[RemovableHandle] = [
            layer.register_forward_hook(self.hooks[path]) for path, layer in layers.items()
        ]


def projections(sites: Iterable[Site]) -> dict[str, nn.Linear]:
    """The projections of attention layers by path, in the order of the layers.

    Raises:
        AttachmentError: a layer has no such projections.
    """
    found: dict[str, nn.Linear] = {}
    for site in sites:
        for name in PROJECTIONS:
            try:
                found[f"{site.path}.{name}"] = site.module.get_submodule(name)  # type: ignore[assignment]
            except AttributeError as error:
                raise AttachmentError(f"{site.path} has no {name}, which an adapter would change") from error
    return found


def attach_low_rank(module: Any, layers: Mapping[str, nn.Module]) -> None:
    """Let adapters change the outputs of projections. None acts yet; does nothing where that is done already."""
    module = unwrapped(module)
    if not hasattr(module, ATTRIBUTE):
        setattr(module, ATTRIBUTE, LowRank(layers))
        for layer in layers.values():
            give_own_forward(layer)


def detach_low_rank(module: Any) -> None:
    """Give the network back as it was. Does nothing where nothing is attached."""
    module = unwrapped(module)
    if (attached := getattr(module, ATTRIBUTE, None)) is not None:
        for handle in attached.handles:
            handle.remove()
        for layer in attached.layers.values():
            take_own_forward(layer)
        delattr(module, ATTRIBUTE)


def set_low_rank(module: Any, adapters: Sequence[tuple[Mapping[str, Factors], float | Tensor]]) -> None:
    """Choose the adapters that act from now on, one after another, each with its strength: of all rows, or `[B]`.

    Rows of strength 0 are, bitwise, as without the adapter. A DoRA's whole change is scaled.

    Raises:
        AttachmentError: an adapter changes projections that nothing is attached to.
    """
    attached: LowRank | None = getattr(unwrapped(module), ATTRIBUTE, None)
    hooks = attached.hooks if attached else {}
    check_low_rank([factors for factors, _ in adapters], attached.layers if attached else {})
    for path, hook in hooks.items():
        hook.acting = [Acting(factors[path], strength) for factors, strength in adapters if path in factors]


def check_low_rank(adapters: Iterable[Mapping[str, Factors]], layers: Mapping[str, nn.Module]) -> None:
    """Whether adapters belong to these projections.

    Raises:
        AttachmentError: they do not; the message names the first offender and both sides.
    """
    for factors in adapters:
        for path, (down, up, _) in factors.items():
            layer: Any = layers.get(path)
            sides = None if layer is None else (layer.in_features, layer.out_features)
            if sides != (down.shape[1], up.shape[0]):
                what = "no projection of attention here" if sides is None else f"{sides[0]} to {sides[1]} channels here"
                raise AttachmentError(
                    f"the adapter changes {path} ({down.shape[1]} to {up.shape[0]} channels), which is {what}: it "
                    "belongs to another base"
                )
