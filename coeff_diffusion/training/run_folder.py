"""The folder of a training run: what lies where, and whether it may be written."""

import errno
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..subject.adapter_methods import ADAPTER_FILES, PEFT_CONFIG
from ..subject.atomic_write import is_leftover
from ..subject.user_file import is_noise, read_file
from .config import ConfigError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # some network file systems
MAX_TEXT = 2**24  # bytes
SAMPLE = re.compile(r"step_(\d{6,12})_(\d{1,6})\.png", re.ASCII)
OF_THE_BASE = "step_000000_"
"""How the names of previews of step 0 begin: they show what the base draws, and stand for no subject."""
MARKS = {"config.yaml": b"pretrained_model_name_or_path:", "README.md": b"library_name: coeff-diffusion"}
"""What stands in each text that a run wrote: others have files of these names, too."""


@dataclass(frozen=True)
class RunFolder:
    """Names of everything a run leaves behind. Nothing exists before `claimed`."""

    path: Path

    @property
    def coefficients(self) -> Path:
        """The subject."""
        return self.path / "coefficients.safetensors"

    @property
    def adapter(self) -> list[Path]:
        """What may lie beside a subject that learned with an adapter (see `Adapter.files`)."""
        return [self.path / name for name in (*ADAPTER_FILES, PEFT_CONFIG)]

    @property
    def adapters(self) -> Path:
        """Folder of the adapters of the timeline's steps."""
        return self.path / "adapters"

    def adapter_of_step(self, step: int) -> Path:
        """The adapter of a step: `adapters/step_000100.safetensors`."""
        return self.adapters / f"step_{step:06d}.safetensors"

    @property
    def timeline(self) -> Path:
        """The subject of every Nth step (see `timeline`)."""
        return self.path / "timeline.safetensors"

    @property
    def config(self) -> Path:
        """The resolved settings; training with them gives the same subject again."""
        return self.path / "config.yaml"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def samples(self) -> Path:
        """Folder of the previews."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """Folder of what a run can be resumed from."""
        return self.path / "checkpoints"

    @property
    def lock(self) -> Path:
        """What the process that trains into the folder holds, as long as it lives."""
        return self.path / ".lock"

    def sample(self, step: int, number: int) -> Path:
        """A preview: `samples/step_000100_0.png`."""
        return self.samples / f"step_{step:06d}_{number}.png"

    def newest_samples(self, step: int | None = None) -> list[Path]:
        """The pictures of the latest preview of the subject (up to a step), in order; empty where there is none."""
        pictures: dict[int, list[tuple[int, Path]]] = {}
        for path in self.samples.glob("step_*.png"):
            if (found := SAMPLE.fullmatch(path.name)) and (step is None or int(found[1]) <= step):
                pictures.setdefault(int(found[1]), []).append((int(found[2]), path))
        pictures.pop(0, None)  # what the base draws
        return [path for _, path in sorted(pictures[max(pictures)])] if pictures else []

    def checkpoint(self, step: int) -> Path:
        """A checkpoint: `checkpoints/step_000100.safetensors`."""
        return self.checkpoints / f"step_{step:06d}.safetensors"

    @contextmanager
    def claimed(
        self, *, overwrite: bool = False, resume: bool = False, say: Callable[[str], None] = print
    ) -> Iterator[None]:
        """Make the folder, make sure before anything expensive that a run may write into it, and keep others out.

        The lock dies with its process. What an earlier run that was killed left half written is swept away.

        Raises:
            ConfigError: it holds something and neither flag allows that, or texts that no run wrote and this one would
                replace; it is a file, it cannot be written, or another run writes into it right now.
        """
        lock = FileLock(self.lock, thread_local=False)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            place = self.place()
            self._take(lock, say)
            try:
                self._check_free(overwrite or resume)
                with tempfile.TemporaryFile(dir=self.path) as probe:  # what permission bits promise is not always so
                    probe.write(b"writable")
                self.sweep()
            except BaseException:
                self._give_back(lock, place)
                raise
        except OSError as error:
            raise ConfigError([f"--output_dir {self.path} cannot be written: {error.strerror or error}"]) from error
        try:
            yield
        finally:
            self._give_back(lock, place)

    def _take(self, lock: FileLock, say: Callable[[str], None]) -> None:
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise ConfigError(
                [f"--output_dir {self.path} is being trained into right now; wait for that run, or take another folder"]
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            say(f"note: {self.path} lies where files cannot be locked; start no second training into it")

    def _give_back(self, lock: FileLock, place: tuple[int, int] | None) -> None:
        with suppress(OSError):  # on Windows nobody can delete what is locked
            if place == self.place():  # or it would be the lock of somebody else
                self.lock.unlink()
        lock.release()

    def _check_free(self, allowed: bool) -> None:
        others = (one for one in self.path.iterdir() if one.name != self.lock.name and not is_noise(one.name))
        if not allowed and not all(map(is_leftover, others)):
            raise ConfigError(
                [
                    f"--output_dir {self.path} is not empty; take another folder, replace the run in it with "
                    "--overwrite_output_dir, or go on with it with --resume_from_checkpoint latest"
                ]
            )
        if foreign := [name for name, mark in MARKS.items() if not self._is_own(self.path / name, mark)]:
            raise ConfigError(
                [
                    f"--output_dir {self.path} holds {' and '.join(foreign)} that no training wrote and this one would "
                    "replace; take another folder, or move it away"
                ]
            )

    def _is_own(self, text: Path, mark: bytes) -> bool:
        """Whether a run wrote a text, or it is not there."""
        return not text.exists() or mark in read_file(text, MAX_TEXT)

    def place(self) -> tuple[int, int] | None:
        """Which folder it is, whatever it is called: device and number on it. None where there is none."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def sweep(self) -> None:
        """Delete files of a run that were being written when it was killed."""
        for folder in (self.path, self.samples, self.checkpoints, self.adapters):
            for path in folder.iterdir() if folder.is_dir() else ():
                if is_leftover(path):
                    path.unlink(missing_ok=True)

    def clear(self, logging_dir: str) -> None:
        """Delete what an earlier run left, and nothing else that lies in the folder."""
        is_run = self.config.exists()  # or adapters and the tracker's files are others': all programs call them alike
        for file in (self.coefficients, *(self.adapter if is_run else ()), self.timeline, self.config, self.card):
            file.unlink(missing_ok=True)
        for pattern in ("samples/step_*.png", "checkpoints/step_*.safetensors", "adapters/step_*.safetensors"):
            for file in self.path.glob(pattern):
                file.unlink()
        for folder in (self.samples, self.checkpoints, self.adapters):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        tracking = self.path / logging_dir
        if is_run and tracking.is_dir():
            for tracked in tracking.rglob("events.out.tfevents.*"):
                tracked.unlink()
            if not any(path.is_file() for path in tracking.rglob("*")):
                shutil.rmtree(tracking)
