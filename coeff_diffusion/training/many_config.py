"""The settings of teaching many subjects at once: those of a training, and what is of many alone."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError

from ..subject.user_file import user_path
from .config import ConfigError, TrainConfig, config_from_namespace, train_parser
from .config_layers import parse_layers

# Unlike one training: nobody looks at hundreds of previews, and what is begun is gone on with, not begun again.
DEFAULTS: dict[str, Any] = {
    "validation_steps": 0,
    "timeline_steps": 0,
    "checkpointing_steps": 50,
    "checkpoints_total_limit": 2,
}
AT_ONCE = 8
TABLES = (
    "subjects.csv",
    "subjects.jsonl",
    "subjects.json",
    "subjects.yaml",
    "subjects.yml",
)  # in the folder of folders
ABOUT_MANY = """Teach a base many subjects at once: a folder of folders, each with the pictures of one subject. Goes on
where it was ended, and skips what is there already."""
HELP = {
    "folder": "a folder with a folder of pictures for each subject: rex.dog holds the dog rex, dog a dog",
    "subjects": "a table that tells of the subjects, one a row: folder, class_word, trigger, ... Default: "
    f"{', '.join(TABLES[:-1])} in the folder, if there is one",
    "subjects_per_batch": "how many learn at once; more are faster and take more memory, that of one training each",
    "ray": "teach on a Ray cluster at this address (auto, HOST:6379, ray://HOST:10001; local: processes of this "
    "machine), a batch a worker; --output_dir may then be a bucket (s3://...)",
    "cpus_per_batch": "with --ray: cores of a worker",
    "gpus_per_batch": "with --ray: GPUs of a worker. Default: 1 where the cluster has any",
}


@dataclass(frozen=True, kw_only=True)
class ManyConfig:
    """What is to be learned: a folder of folders, and the settings that hold for all subjects."""

    folder: str
    config: TrainConfig
    subjects: str | None = None
    subjects_per_batch: int = AT_ONCE
    ray: str | None = None
    cpus_per_batch: float = 1
    gpus_per_batch: float | None = None


def many_settings(**settings: Any) -> TrainConfig:
    """The settings of a training, with the defaults that suit many: no previews, no timeline, but checkpoints."""
    return TrainConfig(**{**DEFAULTS, **settings})


def default_output(folder: str | Path) -> str:
    """Where the subjects of a folder go."""
    return f"outputs/{user_path(folder).absolute().name or 'subjects'}"


def parse_many_config(
    arguments: Sequence[str] | None = None, prog: str | None = None, say: Callable[[str], None] = print
) -> ManyConfig:
    """Parse flags, by default the process's own; see `parse_train_config`.

    Raises:
        ConfigError: an unknown flag, a value of the wrong type, or no folder.
    """
    parser = train_parser(exit_on_error=False, prog=prog or "coeff-diffusion train-many", description=ABOUT_MANY)
    parser.add_argument("folder", nargs="?", help=HELP["folder"])
    parser.add_argument("--subjects", type=str, help=HELP["subjects"])
    parser.add_argument("--subjects_per_batch", type=int, default=AT_ONCE, help=HELP["subjects_per_batch"])
    parser.add_argument("--ray", type=str, metavar="ADDRESS", help=HELP["ray"])
    parser.add_argument("--cpus_per_batch", type=float, default=1.0, help=HELP["cpus_per_batch"])
    parser.add_argument("--gpus_per_batch", type=float | None, help=HELP["gpus_per_batch"])
    parser.set_defaults(**DEFAULTS)
    try:
        parsed, notes = parse_layers(parser, sys.argv[1:] if arguments is None else list(arguments))
    except ArgumentError as error:
        raise ConfigError([str(error)]) from error
    for note in notes:
        say(note)
    if parsed.folder is None:
        raise ConfigError(["no folder is given: a folder with a folder of pictures for each subject"])
    return ManyConfig(
        folder=parsed.folder,
        config=config_from_namespace(parsed),
        subjects=parsed.subjects,
        subjects_per_batch=parsed.subjects_per_batch,
        ray=parsed.ray,
        cpus_per_batch=parsed.cpus_per_batch,
        gpus_per_batch=parsed.gpus_per_batch,
    )
