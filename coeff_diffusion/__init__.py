"""Coeff-Tuning for Stable Diffusion: teach it a new subject with a file of about 10 KB.

The whole public API is here. Names load their module on first use, so that `import coeff_diffusion` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attachment import (
        AttachmentError,
        CoeffConfig,
        activate,
        attach,
        collect,
        detach,
        layer_heads,
        trainable_parameters,
    )
    from .attention import CoeffAttnProcessor
    from .blending import blend
    from .coefficients import Coefficients, CoefficientsError, CoefficientsInfo
    from .fingerprint import check_fits, describe_base
    from .kernels import recombined_attention
    from .pipeline import load_base
    from .recombination import recombine
    from .strengths import LayerStrengths
    from .studio import Studio
    from .subjects import load_coefficients, loaded_coefficients, set_coefficients, unload_coefficients
    from .trainer import train

__version__ = "0.1.0"

__all__ = [
    "AttachmentError",
    "CoeffAttnProcessor",
    "CoeffConfig",
    "Coefficients",
    "CoefficientsError",
    "CoefficientsInfo",
    "LayerStrengths",
    "Studio",
    "__version__",
    "activate",
    "attach",
    "blend",
    "check_fits",
    "collect",
    "describe_base",
    "detach",
    "layer_heads",
    "load_base",
    "load_coefficients",
    "loaded_coefficients",
    "recombine",
    "recombined_attention",
    "set_coefficients",
    "train",
    "trainable_parameters",
    "unload_coefficients",
]

_HOME = {
    name: module
    for module, names in {
        "attachment": "AttachmentError CoeffConfig activate attach collect detach layer_heads trainable_parameters",
        "attention": "CoeffAttnProcessor",
        "blending": "blend",
        "coefficients": "Coefficients CoefficientsError CoefficientsInfo",
        "fingerprint": "check_fits describe_base",
        "kernels": "recombined_attention",
        "pipeline": "load_base",
        "recombination": "recombine",
        "strengths": "LayerStrengths",
        "studio": "Studio",
        "subjects": "load_coefficients loaded_coefficients set_coefficients unload_coefficients",
        "trainer": "train",
    }.items()
    for name in names.split()
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
