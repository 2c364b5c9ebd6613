"""Adapters beside recombination: hooks of attention's projections, which change each row of the output by itself.

PEFT changes a whole batch at once. Here a strength can differ from row to row, so that pictures whose prompt does not
call a subject up stay the base's, bitwise. What each method computes stands in `adapter_math`.

Legend: B rows of the batch; O channels out of a projection.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..subject.adapter import Factors
from ..subject.adapter_kind import AdapterKind
from ..subject.adapter_methods import PROJECTIONS
from .adapter_math import ACTS
from .errors import AttachmentError
from .own_forward import give_own_forward, take_own_forward
from .sites import Site, unwrapped

ATTRIBUTE = "_coeff_adapters"


class Learned(Protocol):
    """An adapter, learning or learned."""

    @property
    def kind(self) -> AdapterKind: ...

    @property
    def factors(self) -> Mapping[str, Factors]: ...


class Acting(NamedTuple):
    """Factors that act, and how strongly: on all rows alike, or `[B]`, on each of them."""

    kind: AdapterKind
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
        for kind, factors, strength in self.acting:
            if kind.about.reads_weights:
                self._check_readable(kind, layer.weight, output)
            of_rows = self._of_rows(strength, output)
            output = ACTS[kind.method](layer, inputs[0], output, factors, of_rows)  # [B, ..., O]
        return output

    def _check_readable(self, kind: AdapterKind, weight: Tensor, output: Tensor) -> None:
        """What computes with the base's weights needs them whole, and where they were used just now."""
        if weight.element_size() == 1:
            raise AttachmentError(
                f"{self.path} is rounded to eight bits, which {kind} cannot change; load the base whole"
            )
        if weight.device != output.device:
            raise AttachmentError(
                f"{self.path} computes on {output.device} but keeps its weights on {weight.device}, where {kind} "
                "cannot read them; use pipe.enable_model_cpu_offload(), or no offloading"
            )

    def _of_rows(self, strength: float | Tensor, output: Tensor) -> float | Tensor:
        """The strength of each row; rows that hold several of a sample's, as frames of a video, have the sample's."""
        if isinstance(strength, float):
            return strength
        times, rest = divmod(len(output), len(strength))
        if rest:
            raise AttachmentError(f"{self.path} got {len(output)} rows, but there are strengths for {len(strength)}")
        of_rows = strength.to(output.device, output.dtype).repeat_interleave(times)
        return of_rows.view(-1, *(1,) * (output.ndim - 1))


class Attached:
    """The hooks of one network; lives on it as an attribute until `detach_adapters`."""

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
                layer: Any = site.module.get_submodule(name)
            except AttributeError as error:
                raise AttachmentError(f"{site.path} has no {name}, which an adapter would change") from error
            while hasattr(layer, "base_layer"):  # PEFT's layers come and go, the base's own stays
                layer = layer.base_layer
            found[f"{site.path}.{name}"] = layer
    return found


def attach_adapters(module: Any, layers: Mapping[str, nn.Module]) -> None:
    """Let adapters change the outputs of projections. None acts yet; does nothing where that is done already."""
    module = unwrapped(module)
    if not hasattr(module, ATTRIBUTE):
        setattr(module, ATTRIBUTE, Attached(layers))
        for layer in layers.values():
            give_own_forward(layer)


def detach_adapters(module: Any) -> None:
    """Give the network back as it was. Does nothing where nothing is attached."""
    module = unwrapped(module)
    if (attached := getattr(module, ATTRIBUTE, None)) is not None:
        for handle in attached.handles:
            handle.remove()
        for layer in attached.layers.values():
            take_own_forward(layer)
        delattr(module, ATTRIBUTE)


def set_adapters(module: Any, adapters: Sequence[tuple[Learned, float | Tensor]]) -> None:
    """Choose the adapters that act from now on, one after another, each with its strength: of all rows, or `[B]`.

    Rows of strength 0 are, bitwise, as without the adapter.

    Raises:
        AttachmentError: an adapter changes projections that nothing is attached to, or that are not used any more.
    """
    attached: Attached | None = getattr(unwrapped(module), ATTRIBUTE, None)
    hooks = attached.hooks if attached else {}
    check_adapters([adapter for adapter, _ in adapters], attached.layers if attached else {})
    changed = dict.fromkeys(path for adapter, _ in adapters for path in adapter.factors)
    _check_in_place(unwrapped(module), {path: attached.layers[path] for path in changed} if attached else {})
    for path, hook in hooks.items():
        hook.acting = [
            Acting(adapter.kind, adapter.factors[path], strength)
            for adapter, strength in adapters
            if path in adapter.factors
        ]


def _check_in_place(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """What somebody computes with instead of these projections would silently go without the adapter."""
    for path, layer in layers.items():
        parent, _, name = path.partition(".to_")
        processor = getattr(module.get_submodule(parent), "processor", None)
        if name != "out.0" and type(processor).__name__.startswith("Fused"):  # as all of diffusers' are called
            raise AttachmentError(
                f"{parent} computes with fused projections, which the adapter cannot change: call "
                "pipe.unfuse_qkv_projections()"
            )
        if all(one is not layer for one in module.get_submodule(path).modules()):
            raise AttachmentError(
                f"{path} was exchanged after the adapter was attached, which would not act there; unload the "
                "coefficients and load them again"
            )


def check_adapters(adapters: Iterable[Learned], layers: Mapping[str, nn.Module]) -> None:
    """Whether adapters belong to these projections.

    Raises:
        AttachmentError: they do not; the message names the first offender and both sides.
    """
    for adapter in adapters:
        for path, named in adapter.factors.items():
            layer: Any = layers.get(path)
            sides = adapter.kind.sides({name: tuple(tensor.shape) for name, tensor in named.items()})
            assert sides is not None  # or it would be no adapter
            out, into = sides
            if layer is None or out != layer.out_features or into not in (None, layer.in_features):
                here = "no projection of attention here"
                if layer is not None:
                    here = f"{layer.in_features} to {layer.out_features} channels here"
                raise AttachmentError(
                    f"the adapter changes {path} ({'' if into is None else f'{into} '}to {out} channels), which is "
                    f"{here}: it belongs to another base"
                )
