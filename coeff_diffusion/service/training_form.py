"""What is asked for when a training is started: checked, and turned into the settings of a training."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError
from PIL import Image

from ..families.load import base_name
from ..families.quantization import quantization_of
from ..families.registry import denoiser_of
from ..training.config import ConfigError, TrainConfig, config_from_namespace, flag_of, train_parser
from ..training.crop_boxes import Box
from .presets import PAGE, PRESETS

MAX_WORDS = 60  # characters of a name, a class word or a trigger
SETTINGS = (
    "center_crop",
    "random_flip",
    "facing",
    "use_masks",
    "trigger",
    "with_prior_preservation",
    "num_class_images",
    "train",
    "with_adapter",
    "max_train_steps",
    "train_batch_size",
    "learning_rate",
    "token_learning_rate",
    "adapter_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "seed",
    "validation_split",
    "keep_best",
    "early_stopping_patience",
    "validation_prompt",
    "validation_steps",
    "num_validation_images",
)
"""What a request may change of `TrainConfig`. Paths are not among it."""
PRECISIONS = {torch.float32: "no", torch.float16: "fp16", torch.bfloat16: "bf16"}


@dataclass(frozen=True)
class TrainingForm:
    """What to teach the base.

    Attributes:
        pictures: files of the subject; they are copied.
        name: what to call the subject; its folder in the library is called after it.
        class_word: what kind of thing it is.
        preset: one of `PRESETS`.
        settings: values by the names in `SETTINGS`; they win over the preset, None leaves it as it is.
        captions: of pictures, instead of those that they came with; an empty one is none.
        boxes: the parts of pictures that are used; all of the others (see `training.crop_boxes`).
        masks: of pictures, instead of those that they came with: mode L, white counts (see `training.masks`).
    """

    pictures: Sequence[Path]
    name: str
    class_word: str
    preset: str = "balanced"
    settings: Mapping[str, Any] = field(default_factory=dict)
    captions: Mapping[Path, str] = field(default_factory=dict)
    boxes: Mapping[Path, Box] = field(default_factory=dict)
    masks: Mapping[Path, Image.Image] = field(default_factory=dict)


def training_config(request: TrainingForm, pipe: Any, folder: Path, class_pictures: Path) -> TrainConfig:
    """The settings of a training.

    Args:
        pipe: the base that is taught.
        folder: where the training finds its pictures and leaves its results.
        class_pictures: where class pictures are kept for the next subject of the class, a folder for each.

    Raises:
        ConfigError: with all that is wrong with them.
    """
    unknown = [key for key in request.settings if key not in SETTINGS]
    if unknown:
        listed = ", ".join(repr(key[:MAX_WORDS]) for key in unknown)
        raise ConfigError([f"unknown setting {listed}; known are {', '.join(SETTINGS)}"])
    if request.preset not in PRESETS:
        raise ConfigError([f"no preset {request.preset[:MAX_WORDS]!r}; there is {', '.join(PRESETS)}"])
    values = {
        **PAGE,
        **PRESETS[request.preset],
        **{key: value for key, value in request.settings.items() if value is not None},
        "pretrained_model_name_or_path": str(pipe.name_or_path),
        "mixed_precision": PRECISIONS[denoiser_of(pipe).dtype],
        "quantization": quantization_of(denoiser_of(pipe)),
        "instance_data_dir": str(folder / "pictures"),
        "class_word": request.class_word or None,
        "name": _words(request.name),
        "output_dir": str(folder),
        "overwrite_output_dir": True,  # the folder is new, and the pictures are in it
    }
    if values.get("with_prior_preservation"):
        values["class_data_dir"] = str(class_pictures / folder_name(f"{base_name(pipe)} {request.class_word}"))
    try:
        parsed = train_parser(exit_on_error=False).parse_object({flag_of(key): one for key, one in values.items()})
    except ArgumentError as error:
        raise ConfigError([str(error)]) from error
    return config_from_namespace(parsed).resolve()


def word_problems(request: TrainingForm) -> list[str]:
    """What is wrong with the words of a request; what no training could be called, or called up by."""
    words = {"name": request.name, "class word": request.class_word, "trigger": request.settings.get("trigger")}
    problems = []
    for what, text in words.items():
        if not isinstance(text, str):
            continue
        if len(text) > MAX_WORDS:
            problems.append(f"the {what} has {len(text):,} characters, expected at most {MAX_WORDS}")
        elif not _words(text).isprintable():
            problems.append(f"the {what} holds characters that cannot be shown")
    if not request.name.strip():
        problems.append("the subject has no name: what it is to be called in the library")
    elif not folder_name(request.name):
        problems.append(f"the name {request.name[:MAX_WORDS]!r} has no letter and no digit")
    return problems


def folder_name(name: str) -> str:
    """The name as a folder is called: lower case, letters and digits of any language with dashes between."""
    return re.sub(r"[\W_]+", "-", name).strip("-").lower()


def _words(text: str) -> str:
    return " ".join(text.split())
