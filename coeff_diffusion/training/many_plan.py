"""What is to be taught of a folder of folders: with which settings, and what of it is there already."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from ..inference.trigger import triggers_clash
from ..subject.errors import CoefficientsError
from .config import ConfigError, TrainConfig
from .many_config import default_output, many_settings
from .many_reports import ManyResult
from .many_subjects import Wanted, find_subjects
from .subject_store import SubjectStore, is_address


def plan(
    folder: str | Path,
    config: TrainConfig | None,
    subjects: str | Path | None,
    subjects_per_batch: int,
    on_cluster: bool = False,
) -> tuple[TrainConfig, list[Wanted]]:
    """The settings that hold for all, and the subjects; see `train_many` for the arguments.

    Args:
        on_cluster: then `output_dir` may be the address of a bucket.

    Raises:
        ConfigError: settings that cannot work for any of them.
    """
    config = config or many_settings()
    config = replace(config, output_dir=config.output_dir or default_output(folder))
    if problems := _problems(config, subjects_per_batch, on_cluster):
        raise ConfigError(problems)
    return config, find_subjects(folder, config, subjects)


def missing(
    wanted: Sequence[Wanted], store: SubjectStore, config: TrainConfig, result: ManyResult, say: Callable[[str], None]
) -> list[Wanted]:
    """The subjects that can be learned and are not there; what is with the others is said, and noted in `result`."""
    waiting = list[Wanted]()
    for one in wanted:
        if one.config is None:
            say(result.fail(one.name, ConfigError([one.problem])))
        elif not config.overwrite_output_dir and store.has(one.name):
            result.skipped[one.name] = store.place_of(one.name)
            if other := differences(one, store):
                say(f"{one.name}: is there already, but {other}; --overwrite_output_dir teaches it anew")
        else:
            waiting.append(one)
    called = [(one.name, str(one.config.trigger)) for one in wanted if one.config is not None]
    for number, (name, trigger) in enumerate(called):
        if other := next((first for first, words in called[:number] if triggers_clash(words, trigger)), ""):
            say(f"note: {name} and {other} cannot be loaded together: one calls up the other ({trigger!r})")
    return waiting


def differences(wanted: Wanted, store: SubjectStore) -> str:
    """What is other in a subject that is there than was asked for now; empty where nothing is."""
    config = wanted.config
    try:
        info = store.read(wanted.name).info
    except CoefficientsError as error:
        return f"it cannot be read ({error})"
    if config is None:
        return ""
    pairs = {
        "trigger": (info.trigger, config.trigger),
        "class_word": (info.class_word, config.class_word),
        "seed": (info.seed, config.seed),
        "instance_prompt": (info.instance_prompt, config.instance_prompt),
    }
    if not config.keep_best and not config.early_stopping_patience:
        pairs["max_train_steps"] = (info.train_steps, config.max_train_steps)
    return ", ".join(f"{name} was {was!r} and is {now!r}" for name, (was, now) in pairs.items() if was != now)


def _problems(config: TrainConfig, subjects_per_batch: int, on_cluster: bool) -> list[str]:
    """What cannot be of many subjects at once; one phrase each."""
    problems = []
    if subjects_per_batch < 1:
        problems.append(f"--subjects_per_batch is {subjects_per_batch}, expected at least 1")
    if config.report_to != "none":
        problems.append("--report_to is of a single training")
    if config.with_adapter is not None:
        problems.append(
            "--with is of a single training: many at once share one pass of the base, which adapters change"
        )
    if config.enable_bucket and config.gradient_checkpointing:
        problems.append("--enable_bucket and --gradient_checkpointing exclude each other where many learn at once")
    if is_address(str(config.output_dir)) and not on_cluster:
        problems.append(f"--output_dir is {config.output_dir}, which is no folder; --ray writes to addresses")
    return problems
