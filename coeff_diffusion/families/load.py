"""Load a base: the frozen model that coefficients belong to.

A base is one of four things, told apart by its name alone: the embedded base (`"embedded"`), a diffusers folder, a
single `.safetensors` checkpoint in the layout its makers published, or the id of a diffusers repository on the Hub.
Pickled weights are never opened, safety checkers are never fetched.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from torch import nn

from ..base import embedded_path
from ..subject.hub_id import is_hub_id
from ..subject.user_file import user_path
from .autoencoders import load_autoencoder
from .checkpoints import PICKLES, load_checkpoint
from .errors import CHOICES
from .errors import BaseModelError as BaseModelError  # a part of what this module offers
from .folders import download, load_folder
from .heap import return_freed
from .quantization import quantize
from .registry import EXPECTED, by_pipeline, family_of

EMBEDDED = "embedded"


def load_base(
    name_or_path: str | Path = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    quantization: str = "no",
) -> Any:
    """Load a stock text-to-image pipeline, in evaluation mode and without a safety checker.

    Args:
        name_or_path: `"embedded"`, a diffusers folder, a `.safetensors` checkpoint, or a Hub id ("user/repository").
            What exists on disk wins over the Hub; `"embedded"` wins over both.
        revision: branch, tag or commit of a Hub repository. Refused for anything else.
        dtype: of all weights: `torch.float32`, `"float16"`, `"bfloat16"`, ...
        device: where to move the pipeline, `"auto"` for the GPU where there is one; None leaves it on the CPU.
        config: for a single checkpoint, the diffusers folder or Hub id that its component configs and its tokenizer
            are read from. By default diffusers derives the repository from the weights and asks the Hub (or its cache).
            Weights do not tell what they predict: a 2.x checkpoint is taken for the v-prediction model, so give the
            config of a 512-pixel 2.x base, which predicts epsilon.
        vae: an autoencoder instead of the base's own (see `load_autoencoder`); a checkpoint without one needs it.
        quantization: `"int8"` keeps the linear layers in eight bits, rounded before anything goes to the device (see
            `quantize`).

    Raises:
        BaseModelError: nothing there, of no known family, pickled or damaged weights, Hub out of reach.
    """
    name = str(name_or_path)
    path = user_path(name)
    if revision is not None and (name == EMBEDDED or path.exists()):
        raise BaseModelError(f"revision={revision!r} only means something for a Hub id, but the base is {name!r}")
    if config is not None and not path.is_file():
        raise BaseModelError(f"config={str(config)!r} only means something for a single checkpoint, not for {name!r}")
    weights = _as_dtype(dtype)

    with quietly():
        pipe = _load(name, path, weights, revision, config, vae)
    _check_parts(pipe, name)
    # What the pipeline says of itself (and what files and pictures record) is the name that was asked for.
    pipe.register_to_config(_name_or_path=name)
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    if {part.dtype for part in networks} != {weights}:
        pipe = pipe.to(weights)
    quantize(pipe, quantization)
    if device is not None:
        pipe = pipe.to(best_device() if str(device) == "auto" else torch.device(device))
    return_freed()
    return pipe


def _load(
    name: str,
    path: Path,
    dtype: torch.dtype,
    revision: str | None,
    config: str | Path | None,
    vae: str | Path | None,
) -> Any:
    match kind_of_base(name):
        case "embedded":
            try:
                folder = embedded_path()
            except FileNotFoundError as error:
                raise BaseModelError(str(error)) from error
        case "folder":
            folder = path
        case "checkpoint":
            return load_checkpoint(path, config, vae, dtype)
        case "hub":
            folder = download(name, revision)
    pipe = load_folder(folder, name, dtype)
    if vae is not None:
        pipe.register_modules(vae=load_autoencoder(vae, dict(pipe.vae.config), dtype))
    return pipe


def kind_of_base(name: str) -> Literal["embedded", "folder", "checkpoint", "hub"]:
    """Which of the four a base's name means; nothing is opened.

    Raises:
        BaseModelError: it means none.
    """
    path = user_path(name)
    if name == EMBEDDED:
        return "embedded"
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "checkpoint"
    if _looks_like_path(name):
        raise BaseModelError(f"no such file or folder: {name!r}; a base is {CHOICES}")
    if is_hub_id(name):
        return "hub"
    raise BaseModelError(f"{name!r} is not a base; a base is {CHOICES}")


def best_device() -> torch.device:
    """The GPU (CUDA, then Apple's) where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def base_name(pipe: Any) -> str:
    """A short name of the base, fit for sharing: `"embedded"`, a Hub id, or the last part of a path (never a path)."""
    return short_name(str(getattr(pipe, "name_or_path", "") or ""))


def short_name(name: str) -> str:
    """What `base_name` makes of the name that a base, or a network beside it, is loaded by."""
    if not name or (is_hub_id(name) and not Path(name).exists()):
        return name or "unknown"
    path = Path(name)
    with suppress(FileNotFoundError):
        if path.resolve() == embedded_path().resolve():
            return EMBEDDED
    return path.stem if path.suffix == ".safetensors" else path.name or path.resolve().name


# --- checks and words -------------------------------------------------------------------------------------------------


def _check_parts(pipe: Any, name: str) -> None:
    """What loads is not always what draws: other channels, an encoder of another width, weights that never came."""
    family = by_pipeline(type(pipe).__name__)
    assert family is not None  # or it would not have been loaded
    parts = (family.denoiser, *family.text_encoders, "vae")
    missing = [part for part in parts if getattr(pipe, part, None) is None]
    if missing or family_of(pipe) is not family:
        why = f"has no {' and no '.join(missing)}" if missing else f"draws with a denoiser of {family_of(pipe).title}"
        raise BaseModelError(f"{name!r} says that it is {family.title}, but it {why}")
    networks: dict[str, Any] = {part: one for part, one in pipe.components.items() if isinstance(one, nn.Module)}
    configs = {part: one.config for part, one in networks.items()}
    settings = {part: one.to_dict() if hasattr(one, "to_dict") else dict(one) for part, one in configs.items()}
    if wrong := family.mismatches(settings):
        raise BaseModelError(f"{name!r} {wrong[0]}; expected {EXPECTED} for drawing from text")
    for part, module in networks.items():
        empty = [key for key, value in module.named_parameters() if value.is_meta]
        if empty:
            raise BaseModelError(f"{name!r} lacks {len(empty)} tensors of its {part}, first {empty[0]!r}")


@contextmanager
def quietly() -> Iterator[None]:
    """No bar for the second that loading takes (downloads keep theirs), no warning that says nothing."""
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    active = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in active:
        library.disable_progress_bar()
    loggers = [
        logging.getLogger(f"diffusers.{place}") for place in ("pipelines.pipeline_utils", "models.modeling_utils")
    ]
    for logger in loggers:
        logger.addFilter(_says_something)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_says_something)
        for library in active:
            library.enable_progress_bar()


def _says_something(record: logging.LogRecord) -> bool:
    """All but that an AutoencoderTiny is no AutoencoderKL, whose place it is made to take, and that no modules at all
    should have been kept in float32, as diffusers says of every single file in another type.
    """
    text = record.getMessage()
    is_tiny = text.startswith("Expected types for vae:") and "AutoencoderTiny" in text
    return not (is_tiny or "should be kept in float32: []" in text)


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BaseModelError(f"dtype {str(dtype)!r} is not a floating-point type; use float32, float16 or bfloat16")
    return found


def _looks_like_path(name: str) -> bool:
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return is_path or Path(name).suffix in (*PICKLES, ".safetensors")
