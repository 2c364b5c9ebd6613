"""The embedded base: a small Stable Diffusion that ships with the package (128 x 128 pictures, 27 M weights, float16).

`model/` is a plain diffusers folder: `StableDiffusionPipeline.from_pretrained(embedded_path())` needs no code of ours.
How it was made: `tools/base`; what it can do: `model/README.md`. `subjects/` holds cards of subjects
that it was taught.
"""

from pathlib import Path

__all__ = ["embedded_path", "ready_cards"]


def embedded_path() -> Path:
    """The folder of the embedded base.

    Raises:
        FileNotFoundError: the installation lacks the weights (built from a clone without large files, for instance).
    """
    path = Path(__file__).parent / "model"
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the embedded base is not at {path}; reinstall coeff-diffusion, or clone the whole repository"
        )
    return path


def ready_cards() -> list[Path]:
    """Pictures drawn on the embedded base by subjects that they carry, for whoever wants to try one."""
    return sorted((Path(__file__).parent / "subjects").glob("*.png"))
