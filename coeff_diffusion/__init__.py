"""Coeff-Tuning for Stable Diffusion: teach it a new subject with a file of about 10 KB.

The whole public API is here. Names load their module on first use, so that `import coeff_diffusion` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .families.fingerprint import check_fits, describe_base
    from .families.load import load_base
    from .inference.pipeline_subjects import (
        load_coefficients,
        loaded_coefficients,
        set_coefficients,
        unload_coefficients,
    )
    from .inference.studio import Studio
    from .method.attachment import (
        AttachmentError,
        CoeffConfig,
        activate,
        attach,
        attach_heads,
        collect,
        detach,
        layer_heads,
        trainable_parameters,
    )
    from .method.kernels import recombined_attention
    from .method.override import CoeffAttnProcessor
    from .method.recombination import recombine
    from .method.sites import Site
    from .method.traced_sites import trace_sites
    from .subject.blend import blend
    from .subject.coefficients import Coefficients
    from .subject.errors import CoefficientsError
    from .subject.info import CoefficientsInfo
    from .subject.layer_strengths import LayerStrengths
    from .training.many_trainer import train_many
    from .training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "AttachmentError",
    "CoeffAttnProcessor",
    "CoeffConfig",
    "Coefficients",
    "CoefficientsError",
    "CoefficientsInfo",
    "LayerStrengths",
    "Site",
    "Studio",
    "UserError",
    "__version__",
    "activate",
    "attach",
    "attach_heads",
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
    "trace_sites",
    "train",
    "train_many",
    "trainable_parameters",
    "unload_coefficients",
]

_HOME = {
    name: module
    for module, names in {
        "method.attachment": "AttachmentError CoeffConfig activate attach attach_heads collect detach layer_heads "
        "trainable_parameters",
        "method.override": "CoeffAttnProcessor",
        "subject.blend": "blend",
        "sources.open": "Coefficients",  # knows more to load it from than plain files
        "subject.errors": "CoefficientsError UserError",
        "subject.info": "CoefficientsInfo",
        "families.fingerprint": "check_fits describe_base",
        "method.kernels": "recombined_attention",
        "families.load": "load_base",
        "method.recombination": "recombine",
        "method.sites": "Site",
        "method.traced_sites": "trace_sites",
        "subject.layer_strengths": "LayerStrengths",
        "inference.studio": "Studio",
        "inference.pipeline_subjects": "load_coefficients loaded_coefficients set_coefficients unload_coefficients",
        "training.many_trainer": "train_many",
        "training.trainer": "train",
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
