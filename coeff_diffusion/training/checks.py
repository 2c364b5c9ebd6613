"""Everything that can be wrong with the settings of a training run, as sentences that name the flag."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, get_type_hints

import torch

from ..inference.trigger import contains_trigger
from ..subject.errors import CoefficientsError, shown
from ..subject.printable import is_text
from ..subject.user_file import user_path
from .crop_boxes import box_problem
from .settings import TrainSettings

PROMPTS = ("instance_prompt", "class_prompt", "validation_prompt")


def find_problems(config: TrainSettings) -> list[str]:
    """All problems of settings whose defaults are filled in; empty where training can start."""
    if empty := _empty(config):
        return empty  # nothing can be asked of those
    return [
        *_number_problems(config),
        *_picture_problems(config),
        *_prompt_problems(config),
        *_validation_problems(config),
        *_adapter_problems(config),
        *_environment_problems(config),
    ]


def _empty(config: TrainSettings) -> list[str]:
    """Settings without a value, as a line `seed:` of a YAML file leaves them, that have to have one."""
    types = get_type_hints(TrainSettings)
    return [
        f"--{name} has no value; write one, or leave it out"
        for name, kind in types.items()
        if getattr(config, name) is None and type(None) not in get_args(kind)
    ]


def _number_problems(config: TrainSettings) -> list[str]:
    least = {
        "resolution": 8,
        "cached_views": 1,
        "dataloader_num_workers": 0,
        "num_class_images": 1,
        "sample_batch_size": 1,
        "num_vectors": 1,
        "max_train_steps": 1,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "lr_warmup_steps": 0,
        "lr_num_cycles": 1,
        "seed": 0,
        "validate_every_n_steps": 0,
        "early_stopping_patience": 0,
        "num_validation_images": 1,
        "validation_steps": 0,
        "timeline_steps": 0,
        "checkpointing_steps": 0,
        "checkpoints_total_limit": 1,
    }
    problems = [
        f"--{name} is {value}, expected at least {bound}"
        for name, bound in least.items()
        if (value := getattr(config, name)) is not None and value < bound
    ]
    ranges: dict[str, tuple[str, bool]] = {
        "coeff_dropout": ("at least 0 and below 1", 0 <= config.coeff_dropout < 1),
        "adam_beta1": ("at least 0 and below 1", 0 <= config.adam_beta1 < 1),
        "adam_beta2": ("at least 0 and below 1", 0 <= config.adam_beta2 < 1),
        "learning_rate": ("above 0", config.learning_rate > 0),
        "token_learning_rate": ("above 0", config.token_learning_rate is None or config.token_learning_rate > 0),
        "stage_token_learning_rate": (
            "above 0",
            config.stage_token_learning_rate is None or config.stage_token_learning_rate > 0,
        ),
        "adapter_learning_rate": ("above 0", config.adapter_learning_rate > 0),
        "lr_power": ("above 0", config.lr_power > 0),
        "adam_epsilon": ("above 0", config.adam_epsilon > 0),
        "adam_weight_decay": ("at least 0", config.adam_weight_decay >= 0),
        "max_grad_norm": ("above 0", config.max_grad_norm > 0),
        "prior_loss_weight": ("at least 0", config.prior_loss_weight >= 0),
        "noise_offset": ("at least 0", config.noise_offset >= 0),
        "ema_decay": ("at least 0 and below 1", 0 <= config.ema_decay < 1),
        "early_stopping_threshold": ("at least 0", config.early_stopping_threshold >= 0),
        "snr_gamma": ("above 0", config.snr_gamma is None or config.snr_gamma > 0),
    }
    for name, (expected, good) in ranges.items():
        value = getattr(config, name)
        if not good or (value is not None and not math.isfinite(value)):
            problems.append(f"--{name} is {value}, expected a number {expected}")
    if config.seed > (most := 2**32 - 1 - config.num_validation_images):  # the previews' seeds count up from it
        problems.append(f"--seed is {config.seed}, expected at most {most}")
    if config.lr_scheduler == "constant" and config.lr_warmup_steps:
        problems.append("--lr_warmup_steps has no effect with --lr_scheduler constant; use constant_with_warmup")
    elif config.lr_warmup_steps >= max(1, config.max_train_steps):
        problems.append(
            f"--lr_warmup_steps is {config.lr_warmup_steps}, expected less than --max_train_steps "
            f"({config.max_train_steps})"
        )
    shaping = {"lr_num_cycles": (1, "cosine_with_restarts"), "lr_power": (1.0, "polynomial")}
    problems += [
        f"--{name} has no effect with --lr_scheduler {config.lr_scheduler}; it is for {scheduler}"
        for name, (usual, scheduler) in shaping.items()
        if getattr(config, name) != usual and config.lr_scheduler != scheduler
    ]
    return problems


def _picture_problems(config: TrainSettings) -> list[str]:
    if config.facing == "one_way" and config.random_flip:
        return ["--facing one_way and --random_flip exclude each other: pictures face one way, or either at random"]
    return []


def _prompt_problems(config: TrainSettings) -> list[str]:
    said = {name: getattr(config, name) for name in ("trigger", "class_word", "name", "license", *PROMPTS)}
    if unread := [
        f"--{name} is {shown(text)}, part of which is no text; write it anew, in UTF-8"
        for name, text in said.items()
        if text is not None and not is_text(text)
    ]:
        return unread[:1]  # the others are made of it
    problems = []
    if not config.instance_data_dir:
        problems.append("--instance_data_dir is missing: the folder with the pictures of the subject")
    problems += [
        f"--crop_boxes: that of {shown(name)} {problem}"
        for name, box in (config.crop_boxes or {}).items()
        if (problem := box_problem(box))
    ]
    if not config.class_word:
        problems.append("--class_word is missing: what kind of thing the subject is, in a word the base knows ('dog')")
    elif config.trigger is not None and not re.search(r"\w", config.trigger):
        problems.append(f"--trigger is {config.trigger!r}, expected words such as 'sks dog'")
    elif config.trigger and config.trigger.lower() == config.class_word.lower():
        problems.append(f"--trigger {config.trigger!r} is the class word itself; expected words of its own")
    elif config.trigger and not contains_trigger(str(config.instance_prompt), config.trigger):
        problems.append(f"--instance_prompt {config.instance_prompt!r} lacks the trigger {config.trigger!r}")
    elif config.trigger and _previews_show_the_base(config, config.trigger):
        problems.append(
            f"--validation_prompt {config.validation_prompt!r} lacks the trigger {config.trigger!r}, so the previews "
            "would show the base"
        )
    if config.with_prior_preservation:
        if not config.class_data_dir:
            problems.append("--class_data_dir is missing: where class pictures are, or will be kept for later runs")
        if config.class_prompt and config.trigger and contains_trigger(config.class_prompt, config.trigger):
            problems.append(f"--class_prompt {config.class_prompt!r} contains the trigger {config.trigger!r}")
        if config.class_data_dir and config.instance_data_dir:
            problems += _folder_problems(config.instance_data_dir, config.class_data_dir)
    elif config.class_data_dir:
        problems.append("--class_data_dir is only used with --with_prior_preservation")
    if config.created is not None and not re.fullmatch(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ?)?", config.created):
        problems.append(f"--created is {config.created!r}, expected a date such as 2026-11-23")
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if config.created is None and epoch and not re.fullmatch(r"[0-9]{1,11}", epoch):
        problems.append(f"SOURCE_DATE_EPOCH is {shown(epoch)} in the environment, expected whole seconds since 1970")
    return problems


def _validation_problems(config: TrainSettings) -> list[str]:
    """What asks for measurements that are not made, or contradicts itself."""
    problems, split = [], config.validation_split
    if not (0 <= split < 1 or (split >= 1 and float(split).is_integer())):
        problems.append(
            f"--validation_split is {split}, expected a share of the pictures (0 to 1) or a whole number of pictures"
        )
    if split and config.validation_data_dir:
        problems.append("--validation_split and --validation_data_dir exclude each other: measure on one or the other")
    if not config.validate_every_n_steps:
        asked = ("validation_split", "validation_data_dir", "keep_best", "early_stopping_patience")
        problems += [
            f"--{name} needs measurements, and --validate_every_n_steps is 0" for name in asked if getattr(config, name)
        ]
    if config.early_stopping_threshold and not config.early_stopping_patience:
        problems.append("--early_stopping_threshold is only used with --early_stopping_patience")
    if config.keep_best and not config.timeline_steps:
        problems.append("--keep_best takes the best step from the timeline, and --timeline_steps is 0")
    return problems


def _adapter_problems(config: TrainSettings) -> list[str]:
    try:
        kind = config.adapter_kind
    except CoefficientsError as error:
        return [f"--with: {error}"]
    if kind is not None and kind.about.reads_weights and config.quantization != "no":
        return [
            f"--with {kind} computes with the base's own weights, which --quantization {config.quantization} rounds; "
            "take lora, or the base whole"
        ]
    return []


def _folder_problems(instance: Sequence[str] | str, class_folder: str) -> list[str]:
    """Pictures of the subject would be taken for pictures of the class, or the other way round."""
    sources = [Path(path).expanduser() for path in ([instance] if isinstance(instance, str) else instance)]
    folders = [path.parent if path.is_file() else path for path in sources]
    other = Path(class_folder).expanduser()
    if any(_holds(folder, other) or _holds(other, folder) for folder in folders):
        return [
            f"--class_data_dir {class_folder} and --instance_data_dir {folders[0]} are one place, or one is inside the "
            "other; keep them apart"
        ]
    return []


def _holds(folder: Path, other: Path) -> bool:
    """Whether a folder is another one or lies around it, however both are spelled."""
    whole, inner = (Path(os.path.realpath(path)) for path in (folder, other))
    return any(one == whole or _are_one(one, whole) for one in (inner, *inner.parents))


def _are_one(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)  # names differ in case where the file system does not care, or are mounts
    except OSError:  # one of them is not there
        return False


def _previews_show_the_base(config: TrainSettings, trigger: str) -> bool:
    acts_without = config.gate == "always" and not config.trains_token
    return (
        config.validation_steps > 0
        and not acts_without
        and not contains_trigger(str(config.validation_prompt), trigger)
    )


def _environment_problems(config: TrainSettings) -> list[str]:
    problems = []
    if config.mixed_precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        problems.append("--mixed_precision fp16 needs a GPU and none was found; use bf16 or no")
    base = config.pretrained_model_name_or_path
    if config.revision is not None and (base == "embedded" or user_path(base).exists()):
        problems.append(f"--revision only means something for a Hub id, not for {base!r}")
    if config.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        problems.append("--report_to tensorboard: it is not installed; pip install 'coeff-diffusion[tracking]'")
    if (kept := config.cache_latents_dir) is not None and user_path(kept).exists() and not user_path(kept).is_dir():
        problems.append(f"--cache_latents_dir {kept} is a file, expected a folder, which need not be there yet")
    if config.overwrite_output_dir and config.resume_from_checkpoint:
        problems.append("--overwrite_output_dir and --resume_from_checkpoint exclude each other")
    if Path(config.logging_dir).is_absolute() or ".." in Path(config.logging_dir).parts:
        problems.append(f"--logging_dir is {config.logging_dir!r}, expected a folder name inside the output folder")
    return problems
