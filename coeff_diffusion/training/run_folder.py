"""The folder of a training run: what lies where, and whether it may be written."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .config import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """Names of everything a run leaves behind. Nothing exists before `prepare`."""

    path: Path

    @property
    def coefficients(self) -> Path:
        """The subject."""
        return self.path / "coefficients.safetensors"

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

    def sample(self, step: int, number: int) -> Path:
        """A preview: `samples/step_000100_0.png`."""
        return self.samples / f"step_{step:06d}_{number}.png"

    def newest_samples(self) -> list[Path]:
        """The pictures of the latest preview, in order; empty where there is none."""
        found = sorted(self.samples.glob("step_*_*.png"))
        step = found[-1].name.rsplit("_", 1)[0] if found else ""
        return sorted(
            (path for path in found if path.name.rsplit("_", 1)[0] == step), key=lambda p: (len(p.name), p.name)
        )

    def checkpoint(self, step: int) -> Path:
        """A checkpoint: `checkpoints/step_000100.safetensors`."""
        return self.checkpoints / f"step_{step:06d}.safetensors"

    def prepare(self, *, overwrite: bool = False, resume: bool = False) -> None:
        """Make the folder and make sure, before anything expensive, that a run may write into it.

        Raises:
            ConfigError: it holds something and neither flag allows that, it is a file, or it cannot be written.
        """
        try:
            if self.path.is_dir() and any(self.path.iterdir()) and not (overwrite or resume):
                raise ConfigError(
                    [
                        f"--output_dir {self.path} is not empty; take another folder, replace the run in it with "
                        "--overwrite_output_dir, or go on with it with --resume_from_checkpoint latest"
                    ]
                )
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path) as probe:  # what permission bits promise is not always so
                probe.write(b"writable")
        except OSError as error:
            raise ConfigError([f"--output_dir {self.path} cannot be written: {error.strerror or error}"]) from error

    def clear(self, logging_dir: str) -> None:
        """Delete what an earlier run left, and nothing else that lies in the folder."""
        for file in (self.coefficients, self.timeline, self.config, self.card):
            file.unlink(missing_ok=True)
        for pattern in ("samples/step_*.png", "checkpoints/step_*.safetensors"):
            for file in self.path.glob(pattern):
                file.unlink()
        for folder in (self.samples, self.checkpoints):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        for tracked in (self.path / logging_dir).rglob("events.out.tfevents.*"):
            tracked.unlink()
        if (self.path / logging_dir).is_dir() and not any(p.is_file() for p in (self.path / logging_dir).rglob("*")):
            shutil.rmtree(self.path / logging_dir)
