"""A subject that visibly does something, without training: random coefficients and a random token."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.families.layout import known_layout
from coeff_diffusion.method.adapter_hooks import projections
from coeff_diffusion.method.attachment import layer_heads
from coeff_diffusion.method.sites import find_sites
from coeff_diffusion.subject.adapter import Adapter
from coeff_diffusion.subject.adapter_kind import AdapterKind


def make_subject(
    unet: UNet2DConditionModel, text_encoder: CLIPTextModel, name: str, trigger: str, class_word: str, seed: int = 1
) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    coeffs = {path: torch.randn(heads, heads, generator=generator) for path, heads in layer_heads(unet).items()}
    token = torch.randn(1, text_encoder.config.hidden_size, generator=generator)
    info = CoefficientsInfo(name=name, trigger=trigger, class_word=class_word)
    return Coefficients(coeffs, tokens={"text_encoder": token}, info=info)


def with_adapter(subject: Coefficients, unet: UNet2DConditionModel, written: str = "lora:2") -> Coefficients:
    """The subject as if it had learned with an adapter, of random numbers."""
    kind, generator = AdapterKind.parse(written), torch.Generator().manual_seed(2)
    factors = {
        path: {
            name: 0.3 * torch.randn(shape, generator=generator)
            for name, shape in kind.shapes(layer.out_features, layer.in_features).items()
        }
        for path, layer in projections(find_sites(unet).values()).items()
        if path.endswith(kind.about.projections)
    }
    return subject.joined(Adapter(kind, factors))


def of_stable_diffusion(**info: Any) -> Coefficients:
    """A subject for Stable Diffusion 1.x, which a QR code can hold and the tiny base cannot use."""
    topology = known_layout("")
    assert topology is not None
    generator = torch.Generator().manual_seed(1)
    coeffs = {path: 0.1 * torch.randn(heads, heads, generator=generator) for path, heads in topology.heads.items()}
    known = {"base_fingerprint": topology.fingerprint, "base_model": "some/base", "base_architecture": "custom"}
    return Coefficients(coeffs, info=CoefficientsInfo(**{**known, **info}))
