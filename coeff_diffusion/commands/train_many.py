"""`coeff-diffusion train-many`: many subjects at once, and what became of each."""

from collections.abc import Callable
from functools import partial

from ..subject.errors import UserError
from ..training.many_config import ManyConfig
from ..training.many_ray import train_many_on_ray
from ..training.many_reports import ManyResult
from ..training.many_trainer import train_many


class NotAllLearnedError(UserError):
    """Some subjects were not learned. The command ends with exit code 1."""

    exit_code = 1


def teach_folder(config: ManyConfig, say: Callable[[str], None] = print) -> ManyResult:
    """Teach what `config` asks for and say what became of each subject.

    Raises:
        NotAllLearnedError: not all of them are there now.
    """
    teach: Callable[..., ManyResult] = train_many
    if config.ray is not None:
        cpus, gpus = config.cpus_per_batch, config.gpus_per_batch
        teach = partial(train_many_on_ray, address=config.ray, cpus_per_batch=cpus, gpus_per_batch=gpus)
    result = teach(
        config.folder,
        config.config,
        subjects=config.subjects,
        subjects_per_batch=config.subjects_per_batch,
        say=say,
    )
    for line in result.table():
        say(line)
    if result.stopped:
        raise NotAllLearnedError("stopped; what is learned so far is kept, and the same command goes on")
    if failed := result.failed:
        names = ", ".join(list(failed)[:8]) + (f" and {len(failed) - 8} more" if len(failed) > 8 else "")
        raise NotAllLearnedError(f"{len(failed)} of {len(failed) + len(result.files)} subjects failed: {names}")
    learned, skipped = len(result.learned), len(result.skipped)
    say(f"{learned} learned, {skipped} there already: {result.path}")
    return result
