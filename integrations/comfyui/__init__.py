"""Subjects of coeff-diffusion in ComfyUI."""

try:
    import coeff_diffusion.subject.coefficients  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"these nodes need coeff-diffusion in ComfyUI's Python ({error}): see Install in the README beside this file"
    ) from error

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
