"""Teach many subjects on a cluster: a batch of them is a task of Ray, which finds workers and tries lost ones again.

All that a task needs is in its arguments (pictures as they are, settings), and all that it leaves is its answer: the
machines share no folder, and whoever asked is the only one who writes to the place where the subjects go.
"""

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

from ..images.photo import MAX_FILE
from ..sources.library import SUFFIX
from ..subject.errors import UserError
from ..subject.user_file import read_file
from .config import ConfigError, TrainConfig
from .many_config import AT_ONCE
from .many_plan import missing, plan
from .many_reports import Learned, ManyResult
from .many_subjects import RUNS, Wanted
from .many_trainer import ManyTrainer
from .ray_cluster import cluster
from .subject_store import SubjectStore, inside

TRIES_AGAIN = 3  # of a batch whose worker is lost
AHEAD = 2  # batches for each that the cluster can teach at once; more would only keep their pictures in its memory
PREFIX = "coeff-diffusion-batch-"  # of folders on workers
FORGOTTEN = 7 * 86_400  # seconds after which a folder is of a worker that was killed and not tried again here


class LostError(Exception):
    """A worker was asked to end; its batch is to be tried again."""


@dataclass(frozen=True)
class Sent:
    """A subject on its way to a worker.

    Attributes:
        files: of its folder, by their paths in it.
    """

    wanted: Wanted
    files: Mapping[str, bytes]

    @classmethod
    def of(cls, wanted: Wanted) -> "Sent":
        """With what its folder holds, hidden files aside. Raises OSError: a file cannot be read."""
        paths = {path.relative_to(wanted.folder): path for path in sorted(wanted.folder.rglob("*"))}
        shown = {inner: path for inner, path in paths.items() if not any(part.startswith(".") for part in inner.parts)}
        return cls(
            wanted, {name.as_posix(): read_file(path, MAX_FILE) for name, path in shown.items() if path.is_file()}
        )


@dataclass
class Answer:
    """What a worker has made of a batch.

    Attributes:
        learned: by name; their files are the worker's.
        files: what is to lie in the place of the subjects, by path.
        failed: why a subject was not learned.
        warnings: lines for the user.
    """

    learned: dict[str, Learned]
    failed: dict[str, str]
    warnings: list[str]
    files: dict[str, bytes] = field(default_factory=dict)


def train_many_on_ray(
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    address: str,
    subjects: str | Path | None = None,
    subjects_per_batch: int = AT_ONCE,
    cpus_per_batch: float = 1,
    gpus_per_batch: float | None = None,
    say: Callable[[str], None] = print,
) -> ManyResult:
    """Teach a base every subject of a folder of folders, on the machines of a cluster; see `train_many`.

    Each batch is taught by one worker. A batch whose worker is lost is taught again, from its last checkpoint where
    the same machine takes it. What arrives is written at once, so that the same call goes on with what is missing.

    Args:
        address: of a Ray cluster, as `ray.init` takes it ("auto", "10.0.0.1:6379", "ray://10.0.0.1:10001"), or "local"
            for processes of this machine. Where this process is connected to a cluster already, that one is taken.
        config: `output_dir` may be an address for fsspec ("s3://bucket/subjects").
        cpus_per_batch: cores that a worker has.
        gpus_per_batch: by default 1 where the cluster has any.

    Raises:
        ConfigError: settings that cannot work for any of them, no Ray, or no cluster at the address.
        StoreError: the place where subjects go cannot be reached.
    """
    given = {"--cpus_per_batch": cpus_per_batch, "--gpus_per_batch": gpus_per_batch or 0}
    if wrong := [f"{flag} is {value}, expected 0 or more" for flag, value in given.items() if not 0 <= value < inf]:
        raise ConfigError(wrong)
    config, wanted = plan(folder, config, subjects, subjects_per_batch, on_cluster=True)
    store = SubjectStore(str(config.output_dir))
    result = ManyResult(store.place)
    waiting = missing(wanted, store, config, result, say)
    groups = [waiting[start : start + subjects_per_batch] for start in range(0, len(waiting), subjects_per_batch)]
    if not groups:
        return result
    run = secrets.token_hex(8)
    with _forgotten(run), cluster(address) as ray:
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0) if gpus_per_batch is None else gpus_per_batch
        needs = {name: count for name, count in (("CPU", cpus_per_batch), ("GPU", gpus)) if count > 0}
        say(f"{len(waiting)} subjects in {len(groups)} batches")
        if not _room(ray, needs):
            wanted_room = " and ".join(f"{count:g} {name}" for name, count in needs.items())
            say(f"note: each needs {wanted_room}, which the cluster does not have now; waiting for a machine")
        with closing(_answers(ray, run, config, _sent(groups, result, say), needs)) as answers:
            for group, answer in answers:
                if isinstance(answer, Answer):
                    _arrived(answer, store, result, say)
                    done = f"{len(result.files) + len(result.failed)} of {len(wanted)}"
                    say(f"{done}: {', '.join(answer.learned) or 'none'}")
                    continue
                for one in group:  # lost for good, or nothing of it could be taught
                    if one.name not in result.failed:
                        say(result.fail(one.name, answer))
    return result


def _answers(
    ray: Any,
    run: str,
    config: TrainConfig,
    batches: Iterator[tuple[Sequence[Wanted], list[Sent]]],
    needs: Mapping[str, float],
) -> Generator[tuple[Sequence[Wanted], "Answer | BaseException"]]:
    """What becomes of each batch, in the order in which they end. What is asked for no longer is cancelled."""
    options = {"num_cpus": needs.get("CPU", 0), "num_gpus": needs.get("GPU", 0), "max_retries": TRIES_AGAIN}
    teach = ray.remote(teach_batch).options(**options, retry_exceptions=[LostError])
    asked, sent_so_far = dict[Any, Sequence[Wanted]](), 0
    try:
        while True:
            for group, sent in islice(batches, max(0, AHEAD * (_room(ray, needs) or 1) - len(asked))):
                asked[teach.remote(f"{run}-{sent_so_far}", sent, config)] = group
                sent_so_far += 1
            if not asked:
                return
            (done,), _ = ray.wait(list(asked), num_returns=1)
            group = asked.pop(done)
            try:
                yield group, ray.get(done)
            except ray.exceptions.RayError as error:
                yield group, getattr(error, "cause", None) or error
    finally:
        for left in asked:
            ray.cancel(left)


@contextmanager
def _forgotten(run: str) -> Iterator[None]:
    """What workers of this very machine have begun goes, however the block ends: nobody goes on with it."""
    try:
        yield
    finally:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}{run}-*"):
            shutil.rmtree(left, ignore_errors=True)


def _room(ray: Any, needs: Mapping[str, float]) -> int:
    """How many batches the cluster, as it is now, can teach at once."""
    there = ray.cluster_resources()
    return min((int(there.get(name, 0) // count) for name, count in needs.items()), default=1)


def _sent(
    groups: Iterable[Sequence[Wanted]], result: ManyResult, say: Callable[[str], None]
) -> Iterator[tuple[Sequence[Wanted], list[Sent]]]:
    """Batches with their pictures; a subject whose pictures cannot be read fails alone."""
    for group in groups:
        found = []
        for one in group:
            try:
                found.append(Sent.of(one))
            except OSError as error:
                say(result.fail(one.name, error))
        if found:
            yield group, found


def _arrived(answer: Answer, store: SubjectStore, result: ManyResult, say: Callable[[str], None]) -> None:
    """Write what a worker has made, each subject last: where it is, it is finished."""
    for line in answer.warnings:
        say(line)
    for name, why in answer.failed.items():
        say(result.fail(name, UserError(why)))
    for path, data in answer.files.items():
        store.write(path, data)
    for name, learned in answer.learned.items():
        store.write(f"{name}{SUFFIX}", learned.coefficients.to_bytes())
        result.learned[name] = replace(learned, file=store.place_of(name))


# --- the worker -------------------------------------------------------------------------------------------------------


def teach_batch(place: str, sent: Sequence[Sent], config: TrainConfig) -> Answer:
    """Teach a batch of subjects on this machine.

    Args:
        place: name of a folder for it, the same when it is tried again.

    Raises:
        LostError: this process is to end.
    """
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{place}"
    _sweep(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    out, wanted = folder / "subjects", []
    for finished in out.glob(f"*{SUFFIX}"):  # the process ended before it could answer
        finished.unlink()
    for number, one in enumerate(sent):
        pictures = folder / "pictures" / str(number)
        for path, data in one.files.items():
            (pictures / path).parent.mkdir(parents=True, exist_ok=True)
            (pictures / path).write_bytes(data)
        assert one.wanted.config is not None
        run = str(out / RUNS / one.wanted.name)
        settings = replace(one.wanted.config, instance_data_dir=str(pictures), output_dir=run)
        wanted.append(replace(one.wanted, folder=pictures, config=settings))
    lines: list[str] = []
    # What is begun here is gone on with, whatever becomes of subjects that were there before.
    settings = replace(config, output_dir=str(out), overwrite_output_dir=False)
    result = ManyTrainer(wanted, settings, len(wanted), say=lines.append).run()
    if result.stopped:
        raise LostError
    warnings = [line for line in lines if ": warning: " in line]
    answer = Answer(result.learned, result.failed, warnings)
    for one in sent:
        if one.wanted.name in result.learned:
            answer.files |= _left(out / RUNS / one.wanted.name, one.wanted)
    shutil.rmtree(folder, ignore_errors=True)
    return answer


def _sweep(folder: Path) -> None:
    """Remove what batches have left that were killed here long ago, and ended elsewhere."""
    for left in folder.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another user's, or another worker is at it
            if time.time() - left.stat().st_mtime > FORGOTTEN:
                shutil.rmtree(left, ignore_errors=True)


def _left(run: Path, wanted: Wanted) -> dict[str, bytes]:
    """What a training has left beside its subject, by its path in the place of the subjects."""
    assert wanted.config is not None
    paths = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    found = {path.relative_to(run).as_posix(): read_file(path, MAX_FILE) for path in paths}
    here, own = TrainConfig.from_yaml(run / "config.yaml"), wanted.config
    settings = replace(here, instance_data_dir=own.instance_data_dir, output_dir=own.output_dir)
    found["config.yaml"] = settings.to_yaml().encode()
    return {inside(f"{RUNS}/{wanted.name}", path): data for path, data in found.items()}
