"""What touches a network: put recombination into its attention layers, switch it, and give the network back as it was.

An attention layer is named by its path in `unet.attn_processors` without `.processor`, for example
`down_blocks.0.attentions.0.transformer_blocks.0.attn1`. Legend: B batch, H heads of the layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..subject.errors import listed
from ..subject.places import LayerKinds
from .acting import Acting
from .errors import AttachmentError as AttachmentError  # a part of what this module offers
from .interception import INNERMOST, pop_interrupted
from .override import Override
from .own_forward import give_own_forward, take_own_forward
from .processors import remedy
from .sites import Kind, Site, find_sites
from .sites import unwrapped as unwrapped

ATTRIBUTE = "_coeff_attachment"


@dataclass(frozen=True)
class CoeffConfig:
    """Which attention layers learn, and how."""

    layers: LayerKinds = "all"
    """Self-attention layers, cross-attention layers, or all, which includes those that attend to both at once. "text"
    is those of text encoders, alone or with others of these ("all+text")."""
    blocks: tuple[str, ...] = ()
    """Shell patterns on the attention path, such as "up_blocks.*": layers that match any of them. Empty: all."""
    dropout: float = 0.2
    """Probability of dropping an entry of a coefficient matrix in a training step (the paper's best is 0.2)."""

    def __post_init__(self) -> None:
        if self.layers not in get_args(LayerKinds):
            raise AttachmentError(f"layers is {self.layers!r}, expected one of {', '.join(get_args(LayerKinds))}")
        if not 0 <= self.dropout < 1:
            raise AttachmentError(f"dropout is {self.dropout}, expected at least 0 and below 1")

    def selects(self, site: Site) -> bool:
        """Whether the layer is one of those asked for."""
        return self.chooses(site.path, site.kind)

    def chooses(self, path: str, kind: Kind) -> bool:
        """The same of a layer by its path and kind."""
        kinds = self.layers.split("+")
        return (kind in kinds or (kind != "text" and "all" in kinds)) and (
            not self.blocks or any(fnmatchcase(path, pattern) for pattern in self.blocks)
        )


EVERY_LAYER = CoeffConfig()


@dataclass
class Attachment:
    """What `attach` did to one network; lives on it as an attribute until `detach`."""

    sites: dict[str, Site]
    overrides: dict[str, Override]
    parameters: dict[str, nn.Parameter]  # the trained coefficients; empty where coefficients are only applied
    handles: list[RemovableHandle]
    learning: dict[str, Tensor] = field(default_factory=dict)  # of what `activate` was given last

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles.

        Raises:
            AttachmentError: what acts was computed with gradients, which neither can hold.
        """
        if computed := [path for path, coeff in self.learning.items() if not coeff.is_leaf]:
            raise AttachmentError(
                f"coefficients that were computed with gradients cannot be copied or pickled: {listed(computed)}; "
                "activate(unet, None) first"
            )
        return vars(self)

    @torch.compiler.disable  # runs before a compiled network, not in it, and so may look at values
    def before_forward(self, model: nn.Module, inputs: Any) -> None:
        """Pre-forward hook of the network."""
        pop_interrupted()
        for path, coeff in self.learning.items():
            # A parameter needs its gradient from the first step on; without gradients, zero is the base, bitwise.
            self.overrides[path].acting = Acting(coeff) if torch.is_grad_enabled() or coeff.any() else None


def select_sites(model: Any, config: CoeffConfig = EVERY_LAYER) -> dict[str, Site]:
    """The attention layers that `config` asks for by path, in the model's own order.

    Args:
        model: a UNet or transformer of diffusers.

    Raises:
        AttachmentError: the model has no attention layers, or none that matches.
    """
    sites = find_sites(model)
    found = {path: site for path, site in sites.items() if config.selects(site)}
    if not found:
        raise AttachmentError(
            f"no attention layer matches layers={config.layers!r}, blocks={list(config.blocks)}; this "
            f"{type(unwrapped(model)).__name__} has {len(sites)}, named like {next(iter(sites))!r}"
        )
    return found


def select_layers(unet: Any, config: CoeffConfig = EVERY_LAYER) -> dict[str, Any]:
    """The modules of `select_sites`."""
    return {path: site.module for path, site in select_sites(unet, config).items()}


def layer_heads(unet: Any, config: CoeffConfig = EVERY_LAYER) -> dict[str, int]:
    """The number of heads of each attention layer that `config` asks for, by path, in the model's own order."""
    return {path: site.heads for path, site in select_sites(unet, config).items()}


def attach(unet: Any, config: CoeffConfig = EVERY_LAYER, *, trainable: bool = True) -> None:
    """Put recombination into the attention layers of a diffusers model. Changes no output yet: all starts at zero.

    Freezes nothing: call `unet.requires_grad_(False)`, before or after, and optimize `trainable_parameters(unet)`.

    Args:
        unet: a UNet or transformer of diffusers; `attach_heads` takes any network.
        config: which layers.
        trainable: create a float32 parameter `[H, H]` per layer, acting at once. False: nothing acts until `activate`.

    Raises:
        AttachmentError: as `attach_heads`, or no layer matches; nothing has changed then.
    """
    attach_heads(unet, select_sites(unet, config), dropout=config.dropout, trainable=trainable)


def attach_heads(
    module: Any, sites: Mapping[str, Site] | Sequence[Site], *, dropout: float = 0.0, trainable: bool = True
) -> None:
    """What `attach` does, to layers of any network.

    A layer is any module that calls PyTorch's `scaled_dot_product_attention` once in each of its forwards, whatever
    else it does. What is learned is kept as `Coefficients(collect(module), denoiser="transformer")`, and acts again
    with `attach_heads(module, sites, trainable=False)` and `activate(module, Coefficients.load(file))`.

    Args:
        module: the network that is called as a whole; all other functions of this file take the same.
        sites: its layers; `trace_sites` finds them in any network.
        dropout: probability of dropping an entry of the coefficients in a training step.
        trainable: see `attach`.

    Raises:
        AttachmentError: already attached, no layers, or layers that are known never to call that function; nothing has
            changed then. A layer that turns out to call it not once raises it when it runs.
    """
    module = unwrapped(module)
    by_path = {site.path: site for site in (sites.values() if isinstance(sites, Mapping) else sites)}
    if is_attached(module):
        raise AttachmentError(
            f"recombination is already attached to this {type(module).__name__}; detach it (or unload) first"
        )
    _check_supported(by_path)
    overrides = {path: Override(path, dropout if trainable else 0.0) for path in by_path}
    parameters = {
        path: nn.Parameter(torch.zeros(site.heads, site.heads, device=_device(site.module)))
        for path, site in by_path.items()
        if trainable
    }
    attachment = Attachment(by_path, overrides, parameters, handles=[])
    attachment.handles.append(module.register_forward_pre_hook(attachment.before_forward))
    for path, site in by_path.items():
        attachment.handles += overrides[path].register(site.module, innermost=True)
    setattr(module, ATTRIBUTE, attachment)
    for part in (module, *attached_layers(module).values()):
        give_own_forward(part)
    activate(module, attachment.parameters)


def detach(unet: Any) -> None:
    """Give the network back as it was: no hook, no attribute.

    Raises:
        AttachmentError: nothing is attached.
    """
    attachment = _attachment(unet)
    activate(unet, None)
    pop_interrupted()
    for handle in attachment.handles:
        handle.remove()
    for part in (unwrapped(unet), *attached_layers(unet).values()):
        take_own_forward(part)
    delattr(unwrapped(unet), ATTRIBUTE)


def activate(unet: Any, coeffs: Mapping[str, Tensor] | None, device: torch.device | str | None = None) -> None:
    """Choose the coefficients that act from now on.

    Args:
        coeffs: by attention path, `[H, H]` for the whole batch or `[B, H, H]`, one matrix per sample of a batch of B. A
            layer that is not named, and a sample whose matrix is zero, is the base's, bitwise. None: all layers are.
            A layer that gets k times B rows, one sample's after another's, as from B videos of k frames, uses a
            sample's matrix for all of its rows.
        device: where the network computes, if its weights are not there all the time; default: where they are now.

    Raises:
        AttachmentError: nothing is attached, or a path or shape does not fit the network; nothing has changed then.
    """
    attachment = _attachment(unet)
    coeffs, sites = dict(coeffs or {}), attachment.sites
    wrong = [
        f"{path}: {list(coeff.shape)} for "
        + (f"{sites[path].heads} heads" if path in sites else "a layer that is not attached")
        for path, coeff in coeffs.items()
        if path not in sites or coeff.ndim not in (2, 3) or coeff.shape[-2:] != (sites[path].heads,) * 2
    ]
    if wrong:
        raise AttachmentError(f"coefficients do not fit the {type(unwrapped(unet)).__name__}: {listed(wrong)}")
    attachment.learning = {path: coeff for path, coeff in coeffs.items() if coeff.requires_grad}
    for path, override in attachment.overrides.items():
        coeff = coeffs.get(path)
        override.acting = None if coeff is None else Acting.of(coeff, device or _device(sites[path].module))


def acting_coeffs(unet: Any) -> dict[str, Tensor]:
    """The coefficients that act now by attention path, `[H, H]` or `[B, H, H]`; all other layers are the base's.

    Raises:
        AttachmentError: nothing is attached.
    """
    overrides = _attachment(unet).overrides
    return {path: override.acting.coeff for path, override in overrides.items() if override.acting is not None}


def is_attached(unet: Any) -> bool:
    """Whether recombination is attached to this network."""
    return hasattr(unwrapped(unet), ATTRIBUTE)


def attached_layers(unet: Any) -> dict[str, nn.Module]:
    """The layers that recombination is attached to, by path: while they are in training mode, coefficients drop out.

    Raises:
        AttachmentError: nothing is attached.
    """
    return {path: site.module for path, site in _attachment(unet).sites.items()}


def trainable_parameters(unet: Any) -> dict[str, nn.Parameter]:
    """The coefficients in training by attention path, `[H, H]` float32 each, in the network's own order.

    They are no parameters of the network itself: its `parameters()`, `state_dict()`, `to()` and `requires_grad_()` pass
    them by, and so does a wrapper that gathers gradients across processes.

    Raises:
        AttachmentError: nothing is attached for training.
    """
    parameters = dict(_attachment(unet).parameters)
    if not parameters:
        raise AttachmentError("the attached coefficients are not in training; detach and attach(unet, config) to train")
    return parameters


def collect(unet: Any) -> dict[str, Tensor]:
    """Copies of the coefficients in training by attention path: `[H, H]`, float32, on the CPU.

    Raises:
        AttachmentError: nothing is attached for training.
    """
    return {
        path: parameter.detach().to("cpu", torch.float32, copy=True)
        for path, parameter in trainable_parameters(unet).items()
    }


def _attachment(unet: Any) -> Attachment:
    if not is_attached(unet):
        raise AttachmentError(
            f"no recombination is attached to this {type(unwrapped(unet)).__name__}; call attach(unet, config) first"
        )
    attachment: Attachment = getattr(unwrapped(unet), ATTRIBUTE)
    return attachment


def _device(module: nn.Module) -> torch.device:
    return next((weight.device for weight in module.parameters()), torch.device("cpu"))


def _check_supported(sites: Mapping[str, Site]) -> None:
    """Refuse layers that are known to have nothing to recombine."""
    if not sites:
        raise AttachmentError("there are no layers to attach to")
    if taken := [path for path, site in sites.items() if INNERMOST in site.module._forward_hooks]:
        raise AttachmentError(f"recombination is already attached to {listed(taken)}, as layers of another network")
    processors = {path: getattr(site.module, "processor", None) for path, site in sites.items()}
    reasons = {path: reason for path, one in processors.items() if (reason := remedy(one))}
    if reasons:
        wrong = [f"{path} ({type(processors[path]).__name__})" for path in reasons]
        raise AttachmentError(
            f"{len(wrong)} of {len(sites)} attention layers cannot be recombined, they never call PyTorch's "
            f"scaled_dot_product_attention: {listed(wrong)}; {'; '.join(dict.fromkeys(reasons.values()))}"
        )
