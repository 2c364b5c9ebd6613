"""Everything a killed run needs to go on as if nothing had happened, in one safetensors file (no pickle).

Tensors: `parameters/<name>`, `optimizer/<index>/<key>`. Metadata: `format` = `coeff-diffusion-checkpoint`, `state` =
JSON of the rest. No random state is kept: every step draws from generators seeded by (seed, step) alone.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..subject.atomic_write import atomic_write
from ..subject.errors import UserError
from ..subject.user_file import check_file, user_path

FORMAT = "coeff-diffusion-checkpoint"


class CheckpointError(UserError, ValueError):
    """A checkpoint is not there, is damaged, or belongs to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Attributes:
        parameters: what is trained, by name, `[H, H]` or `[vectors, D]`, float32.
        optimization: the `state_dict` of `Optimization`.
        losses: of every step so far.
        identity: what has to be the same in the run that goes on, such as the batch size.
    """

    step: int
    parameters: Mapping[str, Tensor]
    optimization: Mapping[str, Any]
    losses: list[float]
    identity: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file in one move: a kill at any moment leaves the previous checkpoints whole."""
        tensors = {f"parameters/{name}": value.detach().cpu().contiguous() for name, value in self.parameters.items()}
        plain: dict[str, dict[str, Any]] = {}
        optimizer = self.optimization["optimizer"]
        for index, entries in optimizer["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
                else:
                    plain.setdefault(str(index), {})[key] = value
        state = {
            "step": self.step,
            "optimization": {
                **self.optimization,
                "optimizer": {"param_groups": optimizer["param_groups"], "state": plain},
            },
            "losses": self.losses,
            "identity": dict(self.identity),
        }
        data = save(tensors, metadata={"format": FORMAT, "state": json.dumps(state)})
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(data)

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file that `save` wrote.

        Raises:
            CheckpointError: it is missing, damaged or something else.
        """
        if not path.exists():
            raise CheckpointError(f"no checkpoint {path}")
        try:
            check_file(path)
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
            if metadata.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a checkpoint of a training run")
            state = json.loads(metadata["state"])
            optimizer = state["optimization"]["optimizer"]
            moments: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in optimizer["state"].items()}
            for key, value in tensors.items():
                if key.startswith("optimizer/"):
                    _, index, name = key.split("/", 2)
                    moments.setdefault(int(index), {})[name] = value
            return cls(
                step=int(state["step"]),
                parameters={
                    k.removeprefix("parameters/"): v for k, v in tensors.items() if k.startswith("parameters/")
                },
                optimization={**state["optimization"], "optimizer": {**optimizer, "state": moments}},
                losses=state["losses"],
                identity=state["identity"],
            )
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged ({error}); go on from an earlier one") from error

    def check(self, identity: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Make sure that this run is the one that wrote the checkpoint.

        Raises:
            CheckpointError: naming every setting that differs, with both sides.
        """
        wanted = json.loads(json.dumps(dict(identity)))  # as a file would have it: tuples are lists
        differing = [
            f"{key} was {self.identity.get(key)!r} and is {wanted.get(key)!r}"
            for key in {**self.identity, **wanted}
            if self.identity.get(key) != wanted.get(key)
        ]
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        if shapes != {name: tuple(value.shape) for name, value in self.parameters.items()}:
            differing.append("what is trained has other names or shapes")
        if differing:
            raise CheckpointError(
                f"the checkpoint of step {self.step} belongs to another run: {'; '.join(differing)}. Train with the "
                "settings it was written with, or start anew in another folder"
            )


def find_checkpoint(name: str, folder: Path) -> Path:
    """The file that `--resume_from_checkpoint` means: a path, a name in the folder, or "latest" of the folder.

    Raises:
        CheckpointError: there is none.
    """
    if name == "latest":
        found = sorted(folder.glob("step_*.safetensors"))
        if not found:
            raise CheckpointError(
                f"no checkpoint in {folder}; leave out --resume_from_checkpoint to start anew (checkpoints are only "
                "written with --checkpointing_steps)"
            )
        return found[-1]
    for path in (user_path(name), folder / name, folder / f"{name}.safetensors"):
        if path.is_file():
            return path
    raise CheckpointError(f"no checkpoint {name!r}; expected a file, or 'latest' of {folder}")


def prune_checkpoints(folder: Path, keep: int | None) -> None:
    """Delete the oldest checkpoints beyond the number to keep; None keeps all."""
    if keep is not None:
        for path in sorted(folder.glob("step_*.safetensors"))[:-keep]:
            path.unlink()
