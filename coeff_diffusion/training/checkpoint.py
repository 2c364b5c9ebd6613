"""Everything a killed run needs to go on as if nothing had happened, in one safetensors file (no pickle).

Tensors: `parameters/<name>`, `optimizer/<index>/<key>`. Metadata: `format` = `coeff-diffusion-checkpoint`, `state` =
JSON of the rest. No random state is kept: every step draws from generators seeded by (seed, step) alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..subject.atomic_write import atomic_write
from ..subject.errors import UserError, cut, listed, shown
from ..subject.user_file import user_path
from .optimizer import Optimizer
from .tensor_file import DamagedFileError, is_count, losses_by_step, numbers, read_json, read_tensors

FORMAT = "coeff-diffusion-checkpoint"
MOMENT = re.compile(r"optimizer/(\d{1,6})/(\w+)", re.ASCII)


class CheckpointError(UserError, ValueError):
    """A checkpoint is not there, is damaged, or belongs to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Attributes:
        parameters: what is trained, by name, `[H, H]` or `[vectors, D]`, float32.
        optimization: the `state_dict` of `Optimizer`; one that was read has those parts of it that move.
        losses: of every step so far.
        validation: the losses that were measured on the way, by step (see `Validation`).
        identity: what has to be the same in the run that goes on, such as the batch size.
    """

    step: int
    parameters: Mapping[str, Tensor]
    optimization: Mapping[str, Any]
    losses: list[float]
    identity: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[int, float] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the file in one move: a kill at any moment leaves the previous checkpoints whole."""
        tensors = {f"parameters/{name}": value.detach().cpu().contiguous() for name, value in self.parameters.items()}
        for index, entries in self.optimization["optimizer"]["state"].items():
            for key, value in entries.items():
                tensors[f"optimizer/{index}/{key}"] = value.detach().cpu().contiguous()
        state = {
            "step": self.step,
            "optimization": {name: part for name, part in self.optimization.items() if name != "optimizer"},
            "losses": self.losses,
            "validation": sorted(self.validation.items()),
            "identity": dict(self.identity),
        }
        data = save(tensors, metadata={"format": FORMAT, "state": json.dumps(state)})
        path.parent.mkdir(exist_ok=True)  # not its parents: where the run's folder is gone, this is an error
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
            tensors, metadata = read_tensors(path, FORMAT)
            return cls(**_content(read_json(metadata, "state"), tensors))
        except DamagedFileError as error:
            raise CheckpointError(f"{path} is not a readable checkpoint: {error}; go on from an earlier one") from error

    def check(self, identity: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Make sure that this run is the one that wrote the checkpoint.

        Raises:
            CheckpointError: naming every setting that differs, with both sides.
        """
        wanted = json.loads(json.dumps(dict(identity)))  # as a file would have it: tuples are lists
        both = ((key, self.identity.get(key), wanted.get(key)) for key in {**self.identity, **wanted})
        differing = [
            f"{cut(key) if key.isidentifier() else shown(key)} was {shown(was)} and is {shown(now)}"
            for key, was, now in both
            if was != now
        ]
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        if shapes != {name: tuple(value.shape) for name, value in self.parameters.items()}:
            differing.append("what is trained has other names or shapes")
        if differing:
            raise CheckpointError(
                f"the checkpoint of step {self.step} belongs to another run: {listed(differing, most=8)}. Train with "
                "the settings it was written with, or start anew in another folder"
            )

    def restore(self, identity: Mapping[str, Any], parameters: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        """Put everything that learns, and what makes it learn, where it was.

        Raises:
            CheckpointError: it belongs to another run (see `check`), or is damaged.
        """
        self.check(identity, parameters)
        try:
            optimizer.load_state_dict(self.optimization)
        except DamagedFileError as error:
            raise CheckpointError(
                f"the checkpoint of step {self.step} is damaged: {error}; go on from an earlier one"
            ) from error
        with torch.no_grad():
            for key, parameter in parameters.items():
                parameter.copy_(self.parameters[key])


def _content(state: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint is made of, from its JSON and its tensors.

    Raises:
        DamagedFileError: something is missing, of another kind, or no number.
    """
    kinds = {"step": int, "losses": list, "validation": list, "identity": dict, "optimization": dict}
    found = state if isinstance(state, dict) else {}
    wrong = [key for key, kind in kinds.items() if type(found.get(key)) is not kind]
    if wrong:
        raise DamagedFileError(f"its state has no {wrong[0]!r} that makes sense: {shown(state)}")
    step, losses = found["step"], numbers(found["losses"], "its losses")
    if not is_count(step) or step != len(losses):
        raise DamagedFileError(f"it is of step {shown(step)} and has the losses of {len(losses)} steps")
    parameters: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise DamagedFileError(f"{shown(name)} holds values that are no numbers")
        if name.startswith("parameters/"):
            parameters[name.removeprefix("parameters/")] = tensor
        elif place := MOMENT.fullmatch(name):
            moments.setdefault(int(place[1]), {})[place[2]] = tensor
        else:
            raise DamagedFileError(f"it holds {shown(name)}, which no checkpoint has")
    optimization = {**found["optimization"], "optimizer": {"state": moments}}
    return {
        "step": step, "parameters": parameters, "optimization": optimization, "losses": losses,
        "identity": found["identity"], "validation": losses_by_step(found["validation"]),
    }  # fmt: skip


def find_checkpoint(name: str, folder: Path) -> Path:
    """The file that `--resume_from_checkpoint` means: a path, a name in the folder, or "latest" of the folder.

    Raises:
        CheckpointError: there is none.
    """
    if name == "latest":
        found = list(checkpoints_of(folder).values())
        if not found:
            raise CheckpointError(
                f"no checkpoint in {folder}; leave out --resume_from_checkpoint to start anew, or give "
                "--overwrite_output_dir instead (checkpoints are only written with --checkpointing_steps)"
            )
        return found[-1]
    for path in (user_path(name), folder / name, folder / f"{name}.safetensors"):
        if path.is_file():
            return path
    raise CheckpointError(f"no checkpoint {name!r}; expected a file, or 'latest' of {folder}")


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The checkpoints in a folder by their steps, in their order."""
    found = {path.stem.removeprefix("step_"): path for path in folder.glob("step_*.safetensors")}
    return dict(sorted((int(step), path) for step, path in found.items() if step.isascii() and step.isdigit()))


def prune_checkpoints(folder: Path, keep: int | None, step: int) -> None:
    """Delete the checkpoints that a run does not need any more when it has written that of a step.

    Those of later steps are of a way that it left, as one that goes on from an earlier checkpoint does: "latest" would
    lead back to it. Of the others the newest `keep` stay; None keeps all.
    """
    found = checkpoints_of(folder)
    gone = [at for at in found if at > step]
    if keep is not None:
        gone += [at for at in found if at <= step][:-keep]
    for at in gone:
        found[at].unlink()
