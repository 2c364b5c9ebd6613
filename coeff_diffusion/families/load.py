"""Load a base: the frozen Stable Diffusion that coefficients belong to.

A base is one of four things, told apart by its name alone: the embedded base (`"embedded"`), a diffusers folder, a
single `.safetensors` checkpoint in the original Stable Diffusion layout, or the id of a diffusers repository on the
Hub. Pickled weights are never opened, safety checkers are never fetched.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from ..base import embedded_path
from ..subject.errors import UserError

EMBEDDED = "embedded"
EXPECTED = "Stable Diffusion 1.x or 2.x (StableDiffusionPipeline)"
HUB_ID = r"[\w.-]+/[\w.-]+"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")

# The components that draw. What a pipeline may carry beside them (safety checker, feature extractor, image encoder)
# plays no part in drawing from text and is passed as None, which also keeps diffusers from fetching it.
NOT_LOADED: dict[str, None] = {"safety_checker": None, "feature_extractor": None, "image_encoder": None}
HUB_FILES = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]

# How the pipelines of other families are called in an error; any other class is shown by its own name.
FAMILIES = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3",
    "StableDiffusionInpaint": "Stable Diffusion inpainting",
    "Flux": "FLUX",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
}
# Tensor names that give another kind of checkpoint away; the first match names it.
OTHER_CHECKPOINTS = (
    (r"^conditioner\.embedders\.1\.", "Stable Diffusion XL"),
    (r"^conditioner\.", "a Stable Diffusion XL refiner"),
    (r"(^|\.)joint_blocks\.", "Stable Diffusion 3"),
    (r"(^|\.)double_blocks\.", "FLUX"),
    (r"^control_model\.", "a ControlNet, not a base"),
    (r"^lora_|\.lora_", "a LoRA, not a base"),
    (r"\.coeff$", "a subject of coeff-diffusion, not a base (load it with --subject)"),
)


class BaseModelError(UserError, ValueError):
    """A base cannot be loaded. The message is one line: what was tried, what was expected, what to do."""


def load_base(
    name_or_path: str | Path = EMBEDDED,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    config: str | Path | None = None,
) -> StableDiffusionPipeline:
    """Load a stock `StableDiffusionPipeline`, in evaluation mode and without a safety checker.

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

    Raises:
        BaseModelError: nothing there, not Stable Diffusion 1.x or 2.x, pickled or damaged weights, Hub out of reach.
    """
    name = str(name_or_path)
    path = Path(name).expanduser()
    if revision is not None and (name == EMBEDDED or path.exists()):
        raise BaseModelError(f"revision={revision!r} only means something for a Hub id, but the base is {name!r}")
    if config is not None and not path.is_file():
        raise BaseModelError(f"config={str(config)!r} only means something for a single checkpoint, not for {name!r}")
    weights = _as_dtype(dtype)

    with _without_bars():
        pipe = _load(name, path, weights, revision, config)
    _check_parts(pipe, name)
    # What the pipeline says of itself (and what files and pictures record) is the name that was asked for.
    pipe.register_to_config(_name_or_path=name)
    if device is not None:
        pipe = pipe.to(best_device() if str(device) == "auto" else torch.device(device))
    # A single checkpoint comes in the type it was saved in.
    return pipe if {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {weights} else pipe.to(weights)


def _load(
    name: str, path: Path, dtype: torch.dtype, revision: str | None, config: str | Path | None
) -> StableDiffusionPipeline:
    match kind_of_base(name):
        case "embedded":
            try:
                return _load_folder(embedded_path(), name, dtype)
            except FileNotFoundError as error:
                raise BaseModelError(str(error)) from error
        case "folder":
            return _load_folder(path, name, dtype)
        case "checkpoint":
            return _load_checkpoint(path, config)
        case "hub":
            return _load_folder(_download(name, revision), name, dtype)


def kind_of_base(name: str) -> Literal["embedded", "folder", "checkpoint", "hub"]:
    """Which of the four a base's name means; nothing is opened.

    Raises:
        BaseModelError: it means none.
    """
    path = Path(name).expanduser()
    if name == EMBEDDED:
        return "embedded"
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "checkpoint"
    if _looks_like_path(name):
        raise BaseModelError(f"no such file or folder: {name!r}; a base is {_choices()}")
    if re.fullmatch(HUB_ID, name):
        return "hub"
    raise BaseModelError(f"{name!r} is not a base; a base is {_choices()}")


def best_device() -> torch.device:
    """The GPU (CUDA, then Apple's) where there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def base_name(pipe: StableDiffusionPipeline) -> str:
    """A short name of the base, fit for sharing: `"embedded"`, a Hub id, or the last part of a path (never a path)."""
    name = str(getattr(pipe, "name_or_path", "") or "")
    if not name or (re.fullmatch(HUB_ID, name) and not Path(name).exists()):
        return name or "unknown"
    path = Path(name)
    with suppress(FileNotFoundError):
        if path.resolve() == embedded_path().resolve():
            return EMBEDDED
    return path.stem if path.suffix == ".safetensors" else path.name or path.resolve().name


# --- a diffusers folder -----------------------------------------------------------------------------------------------


def _load_folder(folder: Path, name: str, dtype: torch.dtype) -> StableDiffusionPipeline:
    _check_model_index(folder, name)
    try:
        return StableDiffusionPipeline.from_pretrained(
            str(folder), dtype=dtype, use_safetensors=True, local_files_only=True, **NOT_LOADED
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        pickled = sorted(str(p.relative_to(folder)) for s in PICKLES for p in folder.glob(f"*/*{s}"))
        if pickled and not list(folder.glob("unet/*.safetensors")):
            raise BaseModelError(
                f"{name!r} holds pickled weights only ({pickled[0]}), which are never opened because they can run "
                "code; expected .safetensors (write them with save_pretrained(..., safe_serialization=True))"
            ) from error
        raise BaseModelError(f"{name!r} is damaged or incomplete: {_one_line(error)}") from error


def _check_model_index(folder: Path, name: str) -> None:
    index = folder / "model_index.json"
    if not index.is_file():
        if (folder / "coefficients.safetensors").is_file():
            raise BaseModelError(f"{name!r} is a subject's folder, not a base; load it with --subject {name}")
        raise BaseModelError(f"{name!r} is not a diffusers folder: it has no model_index.json; a base is {_choices()}")
    try:
        found = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BaseModelError(f"{name!r}: model_index.json does not name a pipeline ({_one_line(error)})") from error
    if found == "StableDiffusionPipeline":
        return
    family = next((text for start, text in FAMILIES.items() if str(found).startswith(start)), "another kind of model")
    raise BaseModelError(f"{name!r} is {family} ({found}); expected {EXPECTED}")


# --- a single checkpoint ----------------------------------------------------------------------------------------------


def _load_checkpoint(path: Path, config: str | Path | None) -> StableDiffusionPipeline:
    check_checkpoint(path)
    folder = None if config is None else Path(config).expanduser()
    source = None if folder is None else str(folder if folder.exists() else config)
    try:
        return StableDiffusionPipeline.from_single_file(str(path), config=source, **NOT_LOADED)
    except (LocalEntryNotFoundError, RepositoryNotFoundError) as error:
        wanted = "the component configs and the tokenizer of its family" if source is None else f"config {source!r}"
        raise BaseModelError(
            f"{str(path)!r} holds weights only; {wanted} could not be fetched from the Hub or found in its cache: "
            "connect once, or give a diffusers folder of the same family as config (--base_config)"
        ) from error
    except NotImplementedError as error:  # torch, about a weight of the config that the file never filled
        raise BaseModelError(
            f"{str(path)!r} lacks weights that {source or 'the configs of its family'!r} calls for: the file is "
            "incomplete, or the config is of another family"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SingleFileComponentError) as error:
        raise BaseModelError(f"{str(path)!r} cannot be loaded as {EXPECTED}: {_one_line(error)}") from error


def check_checkpoint(path: Path) -> None:
    """Refuse pickles, other files and other families from the header alone, before any weight is read.

    Raises:
        BaseModelError: it is one of these; the message says which.
    """
    if path.suffix.lower() in PICKLES:
        raise BaseModelError(
            f"{str(path)!r} is a pickled checkpoint, which is never opened because it can run code; "
            "expected .safetensors (most are published in both forms)"
        )
    if path.suffix.lower() != ".safetensors":
        raise BaseModelError(f"{str(path)!r} is not a checkpoint; expected a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {_one_line(error)}") from error
    for pattern, kind in OTHER_CHECKPOINTS:
        if any(re.search(pattern, name) for name in names):
            raise BaseModelError(f"{str(path)!r} is {kind}; expected {EXPECTED}")
    missing = [
        f"{what} ({start}...)"
        for what, start in (
            ("the UNet", "model.diffusion_model."),
            ("the autoencoder", "first_stage_model."),
            ("the text encoder", "cond_stage_model."),
        )
        if not any(name.startswith(start) for name in names)
    ]
    if missing:
        raise BaseModelError(f"{str(path)!r} lacks {', '.join(missing)}; expected a whole checkpoint of {EXPECTED}")


# --- the Hub ----------------------------------------------------------------------------------------------------------


def _download(repo: str, revision: str | None) -> Path:
    """The local folder of a Hub repository: fetched, or from the cache when the Hub is out of reach."""
    where = repo if revision is None else f"{repo} (revision {revision})"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES[:1]))
        _check_model_index(folder, repo)  # before gigabytes of another family come down the line
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES))
    except GatedRepoError as error:
        raise BaseModelError(
            f"{where}: the Hub wants its terms accepted; do that on the page of the repository, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise BaseModelError(f"{where}: the repository is there, the revision is not") from error
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{where}: neither a folder here nor a repository on the Hub (if it is private: `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise BaseModelError(
            f"{where}: not a folder here, not in the Hub's cache, and the Hub cannot be reached; "
            "check the name and the network, or use --base embedded"
        ) from error


# --- checks and words -------------------------------------------------------------------------------------------------


def _check_parts(pipe: StableDiffusionPipeline, name: str) -> None:
    """What loads is not always what draws: other channels, an encoder of another width, weights that never came."""
    unet, vae, text_encoder = pipe.unet.config, pipe.vae.config, pipe.text_encoder.config
    if unet.addition_embed_type is not None:
        raise BaseModelError(f"{name!r} conditions its UNet on {unet.addition_embed_type!r}; expected {EXPECTED}")
    if unet.in_channels != vae.latent_channels:
        raise BaseModelError(
            f"{name!r} takes {unet.in_channels} channels where its autoencoder makes {vae.latent_channels}: an "
            f"inpainting, depth or upscaling model; expected {EXPECTED} for drawing from text"
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise BaseModelError(
            f"{name!r}: the UNet attends to text of width {unet.cross_attention_dim}, the text encoder gives "
            f"{text_encoder.hidden_size}; the parts are of different families"
        )
    for part in ("unet", "vae", "text_encoder"):
        empty = [key for key, value in getattr(pipe, part).named_parameters() if value.is_meta]
        if empty:
            raise BaseModelError(f"{name!r} lacks {len(empty)} tensors of its {part}, first {empty[0]!r}")


@contextmanager
def _without_bars() -> Iterator[None]:
    """No bar for the second that loading takes (downloads keep theirs)."""
    libraries: list[Any] = [diffusers.utils.logging, transformers.utils.logging]
    active = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in active:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in active:
            library.enable_progress_bar()


def _as_dtype(dtype: torch.dtype | str) -> torch.dtype:
    found = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise BaseModelError(f"dtype {str(dtype)!r} is not a floating-point type; use float32, float16 or bfloat16")
    return found


def _looks_like_path(name: str) -> bool:
    is_path = name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1
    return is_path or Path(name).suffix in (*PICKLES, ".safetensors")


def _choices() -> str:
    return f"{EMBEDDED!r}, a diffusers folder, a .safetensors checkpoint, or a Hub id like 'user/repository'"


def _one_line(error: BaseException) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}" if lines else type(error).__name__
