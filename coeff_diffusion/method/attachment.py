"""What touches a UNet: put recombination into its attention layers, switch it, and give the UNet back as it was.

An attention layer is named by its path in `unet.attn_processors` without `.processor`, for example
`down_blocks.0.attentions.0.transformer_blocks.0.attn1`. Legend: B batch, H heads of the layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..subject.coefficients import CoefficientsError, listed
from .kernels import diagonal_of
from .override import CoeffAttnProcessor

# Plain attention, computed in different ways. Any other processor does something besides, which would get lost.
KNOWN_PROCESSORS = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
ATTRIBUTE = "_coeff_attachment"


class AttachmentError(CoefficientsError):
    """A UNet cannot be recombined as asked, or something else has taken the recombination out of it."""


@dataclass(frozen=True)
class CoeffConfig:
    """Which attention layers learn, and how."""

    layers: Literal["all", "self", "cross"] = "all"
    """Self-attention layers, cross-attention layers, or both."""
    blocks: tuple[str, ...] = ()
    """Shell patterns on the attention path, such as "up_blocks.*": layers that match any of them. Empty: all."""
    dropout: float = 0.2
    """Probability of dropping an entry of a coefficient matrix in a training step (the paper's best is 0.2)."""

    def __post_init__(self) -> None:
        if self.layers not in ("all", "self", "cross"):
            raise AttachmentError(f'layers is {self.layers!r}, expected "all", "self" or "cross"')
        if not 0 <= self.dropout < 1:
            raise AttachmentError(f"dropout is {self.dropout}, expected at least 0 and below 1")

    def selects(self, path: str, attn: Any) -> bool:
        """Whether the layer at `path` is one of those asked for."""
        kind = "cross" if attn.is_cross_attention else "self"
        return self.layers in ("all", kind) and (not self.blocks or any(fnmatchcase(path, p) for p in self.blocks))


EVERY_LAYER = CoeffConfig()


@dataclass
class Attachment:
    """What `attach` did to one UNet; lives on it as an attribute until `detach`."""

    layers: dict[str, Any]  # diffusers' attention modules
    processors: dict[str, CoeffAttnProcessor]
    parameters: dict[str, nn.Parameter]  # the trained coefficients; empty where coefficients are only applied
    acting: dict[str, Tensor] = field(default_factory=dict)  # what `activate` was given last
    hook: RemovableHandle | None = None

    @torch.compiler.disable  # runs before a compiled UNet, not in it, and so may look at values
    def before_forward(self, unet: nn.Module, inputs: Any) -> None:
        """Pre-forward hook of the UNet."""
        for path, attn in self.layers.items():
            if attn.processor is not self.processors[path]:
                raise AttachmentError(
                    f"recombination is attached, but {type(attn.processor).__name__} has taken its place in {path}: "
                    "attention slicing, xFormers or set_attn_processor() was switched after it. Unload the "
                    "coefficients (or detach), switch, then load (or attach) again"
                )
        for path, coeff in self.acting.items():
            if coeff.requires_grad:
                # A parameter needs its gradient from the first step on; without gradients, zero is the base, bitwise.
                self.processors[path].coeff = coeff if torch.is_grad_enabled() or coeff.any() else None


def select_layers(unet: UNet2DConditionModel, config: CoeffConfig = EVERY_LAYER) -> dict[str, Any]:
    """The attention modules that `config` asks for by path, in the UNet's own order.

    Raises:
        AttachmentError: no layer matches.
    """
    unet = unwrapped(unet)
    modules = dict(unet.named_modules())
    paths = [name.removesuffix(".processor") for name in unet.attn_processors]
    layers = {path: modules[path] for path in paths if config.selects(path, modules[path])}
    if not layers:
        raise AttachmentError(
            f"no attention layer matches layers={config.layers!r}, blocks={list(config.blocks)}; this UNet has "
            f"{len(paths)}, named like {next(iter(paths), None)!r}"
        )
    return layers


def layer_heads(unet: UNet2DConditionModel, config: CoeffConfig = EVERY_LAYER) -> dict[str, int]:
    """The number of heads of each attention layer that `config` asks for, by path, in the UNet's own order."""
    return {path: attn.heads for path, attn in select_layers(unet, config).items()}


def attach(unet: UNet2DConditionModel, config: CoeffConfig = EVERY_LAYER, *, trainable: bool = True) -> None:
    """Put recombination into the attention layers of a UNet. Changes no output yet: the coefficients start at zero.

    Freezes nothing: call `unet.requires_grad_(False)`, before or after, and optimize `trainable_parameters(unet)`.

    Args:
        trainable: create a float32 parameter `[H, H]` per layer, acting at once. False: nothing acts until `activate`.

    Raises:
        AttachmentError: already attached, no layer matches, or a layer is of an unknown kind; nothing has changed then.
    """
    if is_attached(unet):
        raise AttachmentError("recombination is already attached to this UNet; detach it (or unload) first")
    layers = select_layers(unet, config)
    _check_supported(layers)
    attachment = Attachment(
        layers=layers,
        processors={
            path: CoeffAttnProcessor(attn.processor, config.dropout if trainable else 0.0)
            for path, attn in layers.items()
        },
        parameters={
            path: nn.Parameter(torch.zeros(attn.heads, attn.heads, device=attn.to_q.weight.device))
            for path, attn in layers.items()
            if trainable
        },
    )
    for path, attn in layers.items():
        attn.set_processor(attachment.processors[path])
    unet = unwrapped(unet)
    attachment.hook = unet.register_forward_pre_hook(attachment.before_forward)
    setattr(unet, ATTRIBUTE, attachment)
    activate(unet, attachment.parameters)


def detach(unet: UNet2DConditionModel) -> None:
    """Give the UNet back as it was: the very same processors, no hook, no attribute.

    A processor that someone else has put in place of ours meanwhile stays: it was asked for later.

    Raises:
        AttachmentError: nothing is attached.
    """
    attachment = _attachment(unet)
    for path, attn in attachment.layers.items():
        if attn.processor is attachment.processors[path]:
            attn.set_processor(attachment.processors[path].base_processor)
    assert attachment.hook is not None
    attachment.hook.remove()
    delattr(unwrapped(unet), ATTRIBUTE)


def activate(
    unet: UNet2DConditionModel, coeffs: Mapping[str, Tensor] | None, device: torch.device | str | None = None
) -> None:
    """Choose the coefficients that act from now on.

    Args:
        coeffs: by attention path, `[H, H]` for the whole batch or `[B, H, H]`, one matrix per sample of a batch of B. A
            layer that is not named, and a sample whose matrix is zero, is the base's, bitwise. None: all layers are.
        device: where the UNet computes, if its weights are not there all the time; default: where they are now.

    Raises:
        AttachmentError: nothing is attached, or a path or shape does not fit the UNet; nothing has changed then.
    """
    attachment = _attachment(unet)
    coeffs = dict(coeffs or {})
    wrong = [
        f"{path}: {list(coeff.shape)} for "
        + (f"{attachment.layers[path].heads} heads" if path in attachment.layers else "a layer that is not attached")
        for path, coeff in coeffs.items()
        if path not in attachment.layers
        or coeff.ndim not in (2, 3)
        or coeff.shape[-2:] != (attachment.layers[path].heads,) * 2
    ]
    if wrong:
        raise AttachmentError(f"coefficients do not fit the UNet: {listed(wrong)}")
    attachment.acting = coeffs
    for path, processor in attachment.processors.items():
        place = device or attachment.layers[path].to_q.weight.device
        processor.act(*_acting(coeffs.get(path), place))


def is_attached(unet: UNet2DConditionModel) -> bool:
    """Whether recombination is attached to this UNet."""
    return hasattr(unwrapped(unet), ATTRIBUTE)


def trainable_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The coefficients in training by attention path, `[H, H]` float32 each, in the UNet's own order.

    They are no parameters of the UNet itself: its `parameters()`, `state_dict()`, `to()` and `requires_grad_()` pass
    them by, and so does a wrapper that gathers gradients across processes.

    Raises:
        AttachmentError: nothing is attached for training.
    """
    parameters = dict(_attachment(unet).parameters)
    if not parameters:
        raise AttachmentError("the attached coefficients are not in training; detach and attach(unet, config) to train")
    return parameters


def collect(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Copies of the coefficients in training by attention path: `[H, H]`, float32, on the CPU.

    Raises:
        AttachmentError: nothing is attached for training.
    """
    return {
        path: parameter.detach().to("cpu", torch.float32, copy=True)
        for path, parameter in trainable_parameters(unet).items()
    }


def unwrapped(unet: Any) -> Any:
    """The UNet itself where `torch.compile` has wrapped it."""
    return getattr(unet, "_orig_mod", unet)


def _attachment(unet: UNet2DConditionModel) -> Attachment:
    if not is_attached(unet):
        raise AttachmentError("no recombination is attached to this UNet; call attach(unet, config) first")
    attachment: Attachment = getattr(unwrapped(unet), ATTRIBUTE)
    return attachment


def _acting(coeff: Tensor | None, device: torch.device | str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """What of `coeff` acts, its diagonal where that is all of it, and on which samples if not on all of them."""
    if coeff is None or coeff.requires_grad:
        return coeff, None, None
    on = coeff.flatten(-2).any(-1)  # [] or [B]
    if not on.any():
        return None, None, None
    rows = None if on.all() else on.nonzero().squeeze(1).to(device)
    diagonal = diagonal_of(coeff)
    return coeff.to(device, torch.float32), None if diagonal is None else diagonal.to(device), rows


def _check_supported(layers: Mapping[str, Any]) -> None:
    """Refuse every layer that does more than plain attention."""
    wrong = []
    for path, attn in layers.items():
        if not isinstance(attn, Attention) or type(attn.processor) not in KNOWN_PROCESSORS:
            wrong.append(f"{path} is computed by {type(attn.processor).__name__}")
        elif attn.added_kv_proj_dim is not None:
            wrong.append(f"{path} has added key and value projections")
        elif attn.fused_projections:
            wrong.append(f"{path} has fused projections (call unet.unfuse_qkv_projections() first)")
        elif attn.inner_kv_dim != attn.inner_dim:
            wrong.append(f"{path} shares keys and values between heads")
    if wrong:
        known = ", ".join(processor.__name__ for processor in KNOWN_PROCESSORS)
        raise AttachmentError(
            f"{len(wrong)} of {len(layers)} attention layers cannot be recombined: {listed(wrong)}. Expected "
            f"plain attention ({known}); remove IP-Adapters and other custom processors first, or choose other layers"
        )
