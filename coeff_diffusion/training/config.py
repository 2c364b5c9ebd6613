"""The settings of a training run: one dataclass field is the YAML key, the command-line flag and its help.

Flags carry the names of diffusers' `train_dreambooth.py` wherever both have the setting. Every default that was chosen
by measurement stands here and nowhere else.
"""

import dataclasses
import difflib
import functools
import os
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import docstring_parser
import yaml
from jsonargparse import ActionYesNo, ArgumentError, ArgumentParser, Namespace

from .checks import find_problems


class ConfigError(ValueError):
    """Settings that cannot work. The message lists every problem, each with its flag; so does `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        listed = "".join(f"\n  {problem}" for problem in self.problems)
        super().__init__(f"the settings cannot work:{listed}")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a training run. Construct it, then `resolve()` fills in what follows from the rest.

    Raises nothing itself: `resolve` checks all fields together and reports all problems at once.
    """

    # --- Base
    pretrained_model_name_or_path: str = "embedded"
    """The base to teach: "embedded" (the small one shipped inside the package), a diffusers folder, a single
    .safetensors checkpoint or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of the base's Hub repository."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id that its component configs and tokenizer come from."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Number format of the frozen base; what is trained stays float32. fp16 needs a GPU, bf16 halves the memory."""

    # --- Subject
    instance_data_dir: list[str] | str | None = None
    """Pictures of the subject: a folder, or a list of files. A `.txt` file beside a picture is its caption and wins
    over the instance prompt; where it lacks the trigger, that takes the place of the class word (or goes in front)."""
    class_word: str | None = None
    """What kind of thing the subject is, in a word the base knows: "dog". Default: the trigger without its first word,
    or the word after "sks" in the instance prompt."""
    trigger: str | None = None
    """The words that call the subject up. Default: "sks <class_word>"."""
    instance_prompt: str | None = None
    """What every picture of the subject shows; must contain the trigger. Default: "a <trigger>"."""
    resolution: int | None = None
    """Side of the training pictures in pixels. Default: what the base was trained at."""
    center_crop: bool = False
    """Crop the middle of each picture instead of random parts of it."""
    random_flip: bool = False
    """Mirror pictures at random. Leave off where left and right differ, as in faces and writing."""
    cached_views: int = 8
    """Random crops of each picture that are encoded once and kept. More views, more variety, longer preparation."""
    dataloader_num_workers: int = 0
    """Processes that read pictures while they are prepared; 0 reads them in the main process."""

    # --- Prior preservation
    with_prior_preservation: bool = False
    """Also train on pictures of the class, so that the class itself stays what it was. With `gate: trigger`, prompts
    without the trigger are the base's anyway; then this only keeps the subject close to its class."""
    class_data_dir: str | None = None
    """Folder of class pictures. What is missing is drawn by the base, once, and reused by later runs."""
    class_prompt: str | None = None
    """What the class pictures show. Default: "a <class_word>"."""
    num_class_images: int = 100
    """How many class pictures to use."""
    sample_batch_size: int = 4
    """Class pictures drawn at once."""
    prior_loss_weight: float = 1.0
    """How much the class pictures count against the subject's."""

    # --- What is learned
    train: Literal["coefficients+token", "coefficients", "token"] = "coefficients+token"
    """The coefficients of the attention maps, the embedding of the trigger, or both."""
    layers: Literal["all", "self", "cross"] = "all"
    """Attention layers that get coefficients: self-attention forms shapes, cross-attention reads the prompt."""
    blocks: list[str] = field(default_factory=list)
    """Patterns on attention paths, such as ["up_blocks.*"]; only layers that match one get coefficients. Empty: all."""
    coeff_dropout: float = 0.2
    """Chance that an entry of a coefficient matrix is left out of a training step. The paper's best rate is 0.2."""
    num_vectors: int = 1
    """Vectors that make up the trigger's embedding. More can hold more, and take as many places in the prompt."""
    gate: Literal["trigger", "always"] = "trigger"
    """How the file acts later: only on prompts with the trigger (all others are the base's, bit for bit), or always."""

    # --- Learning
    max_train_steps: int = 300
    """Updates in all."""
    train_batch_size: int = 4
    """Pictures of the subject in a step; prior preservation adds as many of the class."""
    gradient_accumulation_steps: int = 1
    """Batches that make one update: the effect of a larger batch in the memory of a small one."""
    gradient_checkpointing: bool = False
    """Save memory by computing parts of each step twice."""
    learning_rate: float = 1e-3
    """Of the coefficients. Higher ones gain no more beside a token and drift further from the base."""
    token_learning_rate: float = 2e-2
    """Of the trigger's embedding."""
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"
    ] = "constant"
    """How the learning rates run over the steps."""
    lr_warmup_steps: int = 0
    """Steps over which the learning rates rise from zero (not with "constant")."""
    lr_num_cycles: int = 1
    """Hard restarts of "cosine_with_restarts"."""
    lr_power: float = 1.0
    """Power of "polynomial"."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = 0.999
    """AdamW's decay of the mean squared gradient."""
    adam_weight_decay: float = 1e-2
    """AdamW's pull towards zero."""
    adam_epsilon: float = 1e-8
    """AdamW's guard against division by zero."""
    max_grad_norm: float = 1.0
    """Gradients longer than this are shortened to it."""
    snr_gamma: float | None = None
    """Min-SNR weighting of the timesteps (5.0 is usual); off by default."""
    seed: int = 0
    """Decides every random choice: the same seed gives the same file, byte for byte, on a CPU."""

    # --- Previews
    validation_prompt: str | None = None
    """What the previews draw. Default: the instance prompt."""
    num_validation_images: int = 2
    """Pictures of a preview; they keep their seeds over the run."""
    validation_steps: int = 100
    """Draw a preview every this many steps, and at the end; 0 draws none."""

    # --- Output
    output_dir: str | None = None
    """Where everything goes. Default: "outputs/<trigger with dashes>"."""
    overwrite_output_dir: bool = False
    """Replace what an earlier run left in the output folder."""
    name: str | None = None
    """The subject's name in the file and the model card. Default: the trigger."""
    license: str | None = None
    """Licence of the result, as the Hub spells it ("cc0-1.0"), for the file and the model card."""
    created: str | None = None
    """Date (2026-11-23) to write into the file. Default: SOURCE_DATE_EPOCH where it is set, else no date, so that the
    same seed gives the same bytes on any day."""
    timeline_steps: int = 10
    """Keep the subject of every this many steps in `timeline.safetensors`; 0 keeps none."""
    checkpointing_steps: int = 0
    """Write a checkpoint to resume from every this many steps; 0 writes none."""
    checkpoints_total_limit: int | None = None
    """Keep only this many of the newest checkpoints."""
    resume_from_checkpoint: str | None = None
    """Go on from a checkpoint: "latest" of the output folder, or a file."""
    report_to: Literal["none", "tensorboard"] = "none"
    """Where loss, learning rates and previews are tracked beside the console."""
    logging_dir: str = "logs"
    """Folder of the tracker, inside the output folder."""

    def resolve(self) -> "TrainConfig":
        """The same settings with every default that follows from others filled in.

        What only the base knows (`resolution`) stays None until the base is loaded.

        Raises:
            ConfigError: with all problems found, each naming its flag.
        """
        config = _with_defaults(self)
        if problems := find_problems(config):
            raise ConfigError(problems)
        return config

    @property
    def trains_coefficients(self) -> bool:
        return self.train != "token"

    @property
    def trains_token(self) -> bool:
        return self.train != "coefficients"

    def trajectory(self) -> dict[str, Any]:
        """The settings that decide the course of training, and so have to be the same when a run is resumed.

        The rest is where things go, what is shown, how fast and how long; base and pictures are compared by what is in
        them, not by their paths.
        """
        free = {*sections()["Base"], *sections()["Previews"], *sections()["Output"]} - {"mixed_precision"}
        free |= {"instance_data_dir", "dataloader_num_workers", "class_data_dir", "sample_batch_size"}
        free |= {"max_train_steps", "gradient_checkpointing", "gate"}
        return {name: getattr(self, name) for name in field_help() if name not in free}

    def to_yaml(self) -> str:
        """All settings with their help as comments; `from_yaml` reads it back to an equal config."""
        lines = []
        for section, names in sections().items():
            lines.append(f"# {'-' * 10} {section} {'-' * (100 - len(section))}")
            for name in names:
                lines += [f"# {field_help()[name]}", yaml.safe_dump({name: getattr(self, name)}, width=1000).strip()]
            lines.append("")
        return "\n".join(lines)

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> "TrainConfig":
        """Read a YAML file; keyword arguments win over it.

        Raises:
            ConfigError: the file cannot be read, has an unknown key or a value of the wrong type.
        """
        return dataclasses.replace(parse_train_config(["--config", str(path)]), **overrides)


# --- the command line -------------------------------------------------------------------------------------------------


class ConfigParser(ArgumentParser):
    """jsonargparse's parser, with the nearest known name in the error about an unknown one."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        unknown = re.search(r"Option '([\w.]+)' is not accepted|unrecognized arguments: -*([\w.]+)", message)
        if unknown:
            wrong = unknown[1] or unknown[2]
            near = difflib.get_close_matches(wrong.split(".")[-1], field_help(), n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else "--help lists all settings"
            message = f"unknown setting '{wrong}'; {hint}"
        message = re.sub(r'Parser key "([\w.]+)":\s*', r"--\1: ", " ".join(message.split()))
        message = re.sub(r": Expected an? (.*?)\. G(?:ot|iven) value: (.*)", r" is '\2', expected \1", message)
        super().error(re.sub(r"<class '(\w+)'>|typing\.", r"\1", message), ex)


def train_parser(**kwargs: Any) -> ConfigParser:
    """A parser of every field of `TrainConfig` as a flag, plus `--config FILE.yaml` (repeatable; later ones win).

    Args:
        kwargs: go to jsonargparse's `ArgumentParser`, such as `exit_on_error=False`.
    """
    parser = ConfigParser(**{"allow_abbrev": False, "description": "Teach a Stable Diffusion a new subject.", **kwargs})
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags after it win")
    types = typing.get_type_hints(TrainConfig)
    defaults = {f.name: getattr(TrainConfig(), f.name) for f in dataclasses.fields(TrainConfig)}
    for section, names in sections().items():
        group = parser.add_argument_group(section)
        for name in names:
            flag, shared = f"--{name}", {"default": defaults[name], "help": field_help()[name]}
            if types[name] is bool:  # `--random_flip` alone means true, as diffusers has it
                group.add_argument(flag, action=ActionYesNo(yes_prefix="", no_prefix="no_"), nargs="?", **shared)
            else:
                group.add_argument(flag, type=types[name], **shared)
    return parser


def config_from_namespace(parsed: Namespace | Mapping[str, Any]) -> TrainConfig:
    """The config that `train_parser` parsed."""
    return TrainConfig(**{f.name: parsed[f.name] for f in dataclasses.fields(TrainConfig)})


def parse_train_config(arguments: Sequence[str] | None = None, prog: str | None = None) -> TrainConfig:
    """Parse flags (by default the process's own).

    Args:
        prog: what `--help` calls the program; default: the name of the running script.

    Raises:
        ConfigError: an unknown flag or YAML key (the nearest known one is named), or a value of the wrong type.
    """
    try:
        return config_from_namespace(train_parser(exit_on_error=False, prog=prog).parse_args(arguments))
    except ArgumentError as error:
        raise ConfigError([str(error)]) from error


@functools.cache
def field_help() -> dict[str, str]:
    """The help of every setting: the text under its field, on one line."""
    found = {p.arg_name: p.description or "" for p in docstring_parser.parse_from_object(TrainConfig).params}
    return {f.name: " ".join(found[f.name].split()) for f in dataclasses.fields(TrainConfig)}


def sections() -> dict[str, list[str]]:
    """The settings by section, in the order of the class, for `--help`, YAML files and forms."""
    names = list(field_help())
    starts = {
        "Base": "pretrained_model_name_or_path",
        "Subject": "instance_data_dir",
        "Prior preservation": "with_prior_preservation",
        "What is learned": "train",
        "Learning": "max_train_steps",
        "Previews": "validation_prompt",
        "Output": "output_dir",
    }
    bounds = [*(names.index(first) for first in starts.values()), len(names)]
    return {section: names[bounds[i] : bounds[i + 1]] for i, section in enumerate(starts)}


# --- defaults ---------------------------------------------------------------------------------------------------------


def _with_defaults(config: TrainConfig) -> TrainConfig:
    config = dataclasses.replace(
        config, **{f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    )
    prompt, trigger, class_word = config.instance_prompt, _words(config.trigger), _words(config.class_word)
    if trigger is None and class_word is None and prompt is not None:
        found = re.search(r"(?<!\w)sks\s+(\w+)", prompt, re.IGNORECASE)
        class_word = found[1] if found else None
    if trigger is None:
        trigger = f"sks {class_word}" if class_word else None
    elif class_word is None:
        class_word = trigger.partition(" ")[2] or None
    slug = re.sub(r"[^\w]+", "-", trigger or "subject").strip("-").lower()
    prompt = f"a {trigger}" if prompt is None and trigger else prompt
    return dataclasses.replace(
        config,
        trigger=trigger,
        class_word=class_word,
        instance_prompt=prompt,
        class_prompt=f"a {class_word}" if config.class_prompt is None and class_word else config.class_prompt,
        validation_prompt=prompt if config.validation_prompt is None else config.validation_prompt,
        output_dir=f"outputs/{slug}" if config.output_dir is None else config.output_dir,
        name=trigger if config.name is None else config.name,
    )


def _plain(value: Any) -> Any:
    """The value as YAML has it: a library user may give paths and tuples."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _words(text: str | None) -> str | None:
    """Words separated by single spaces; None stays None."""
    return None if text is None else " ".join(text.split())
