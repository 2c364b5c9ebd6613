"""The subject of every Nth training step in one file, kept because each is only a few kilobytes.

One safetensors file. Tensors: `step_000010/<name>`, where `<name>` is what the tensor is called in a subject's own file
(`unet/<attention path>.coeff`, `text_encoder/token`). Metadata, all strings: `format` = `coeff-diffusion-timeline`,
`format_version` = `1`, `infos` = JSON object of `CoefficientsInfo` by step, `losses` = JSON list of the training loss
of every step from the first, and, where it was measured, `validation_losses` = JSON list of `[step, loss]` on pictures
and noise that stay the same. Never pickle. Adapters are larger: that of each step has a file of its own beside it.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..subject.atomic_write import atomic_write
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.info import CoefficientsInfo
from ..subject.safetensors_file import serialize
from ..subject.user_file import read_file
from .model_card import card_of_step
from .run_folder import RunFolder
from .tensor_file import DamagedFileError, losses_by_step, numbers, read_json, read_tensors

FORMAT = "coeff-diffusion-timeline"
VERSION = "1"
VALIDATION = "validation_losses"
STEP = re.compile(r"\d{1,9}", re.ASCII)
TENSOR = re.compile(rf"step_({STEP.pattern})/(.+)", re.ASCII | re.DOTALL)
MAX_CARD = 2**20  # bytes of the model card


def save_timeline(
    path: str | Path,
    timeline: Mapping[int, Coefficients],
    losses: Sequence[float] = (),
    validation: Mapping[int, float] | None = None,
) -> None:
    """Write all kept steps in one move; the same steps give the same bytes.

    Args:
        timeline: the subject by training step.
        losses: of every step, kept to six digits.
        validation: the losses that were measured on the way, by step.
    """
    tensors = {
        f"step_{step:06d}/{name}": tensor.contiguous()
        for step, coefficients in sorted(timeline.items())
        for name, tensor in coefficients.named_tensors().items()
    }
    infos = {str(step): coefficients.info.to_json() for step, coefficients in sorted(timeline.items())}
    metadata = {
        "format": FORMAT,
        "format_version": VERSION,
        "infos": json.dumps(infos),
        "losses": json.dumps([float(f"{loss:.6g}") for loss in losses]),
    }
    if validation:
        metadata[VALIDATION] = json.dumps(sorted(validation.items()))
    with atomic_write(path) as file:
        file.write(serialize(tensors, metadata))


def load_timeline(path: str | Path) -> dict[int, Coefficients]:
    """The subject by training step, in order.

    Raises:
        CoefficientsError: the file is missing, damaged or something else.
    """
    with _named(path):
        tensors, metadata = _read(Path(path))
        steps: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if not (found := TENSOR.fullmatch(key)):
                raise DamagedFileError(f"it holds {shown(key)}, expected step_<number>/<name>")
            if steps.setdefault(int(found[1]), {}).setdefault(found[2], tensor) is not tensor:
                raise DamagedFileError(f"it holds {shown(key)} twice")
        infos = _infos(read_json(metadata, "infos"))
        if infos.keys() != steps.keys():
            raise DamagedFileError(f"it describes the steps {_listed(infos)} and holds the steps {_listed(steps)}")
        return {step: Coefficients.from_named_tensors(named, infos[step]) for step, named in sorted(steps.items())}


def load_losses(path: str | Path) -> list[float]:
    """The training loss of every step up to the last one that was kept.

    Raises:
        CoefficientsError: the file is missing, damaged or something else.
    """
    with _named(path):
        return numbers(read_json(_read(Path(path))[1], "losses"), "its losses")


def load_validation(path: str | Path) -> dict[int, float]:
    """The losses that were measured on the way, by step, that of the base at 0; empty where none were.

    Raises:
        CoefficientsError: the file is missing, damaged or something else.
    """
    with _named(path):
        metadata = _read(Path(path))[1]
        return losses_by_step(read_json(metadata, VALIDATION)) if VALIDATION in metadata else {}


def keep_step(run: RunFolder, step: int) -> Coefficients:
    """Make a step of a run its subject, in one move, and return it. The model card says so, where there is one.

    The timeline keeps every step, so no choice is final.

    Raises:
        CoefficientsError: no such step; or the run's subject is on no step and would be lost.
    """
    timeline, file = run.timeline, run.coefficients
    steps = load_timeline(timeline)
    if step not in steps:
        raise CoefficientsError(f"{timeline} has no step {step}; it has {', '.join(map(str, steps))}")
    if file.exists() and Coefficients.read(file).sha256 not in {kept.sha256 for kept in steps.values()}:
        raise CoefficientsError(f"{file} is on no step of {timeline} and would be lost; move or rename it first")
    subject = subject_of_step(run, step, steps[step])
    subject.save(file)
    if run.card.is_file() and not run.card.is_symlink():
        edited = read_file(run.card, MAX_CARD, CoefficientsError)  # by someone, perhaps in another encoding
        text = edited.decode("utf-8", errors="surrogateescape")
        with atomic_write(run.card) as card:
            card.write(card_of_step(text, step).encode("utf-8", errors="surrogateescape"))
    return subject


def keep_adapter(run: RunFolder, step: int, subject: Coefficients) -> None:
    """Write the adapter of a step, where the subject has one, to a file of its own."""
    if subject.adapter is not None:
        run.adapters.mkdir(exist_ok=True)
        subject.adapter.save(run.adapter_of_step(step))


def subject_of_step(run: RunFolder, step: int, subject: Coefficients) -> Coefficients:
    """The subject of a step with its adapter, where it has one.

    Raises:
        CoefficientsError: its adapter is gone, or another one.
    """
    file = run.adapter_of_step(step)
    found = subject.with_adapter_of(file)
    if found.info.adapter and found.adapter is None:
        raise CoefficientsError(f"{file} is gone: the adapter ({found.info.adapter}) of step {step}; put it back")
    return found


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_tensors(path, FORMAT)
    if (version := metadata.get("format_version")) != VERSION:
        raise DamagedFileError(f"its version is {shown(version)}, expected {VERSION!r}; a newer program may read it")
    return tensors, metadata


def _infos(found: Any) -> dict[int, CoefficientsInfo]:
    """Where the subject of each step came from."""
    infos: dict[int, CoefficientsInfo] = {}
    for step, text in found.items() if isinstance(found, dict) else [(None, found)]:
        if not isinstance(step, str) or not STEP.fullmatch(step) or not isinstance(text, str) or int(step) in infos:
            raise DamagedFileError(f"it does not say where its steps came from: {shown(found)}")
        infos[int(step)] = CoefficientsInfo.from_json(text)
    return infos


def _listed(steps: Iterable[int]) -> str:
    return listed([str(step) for step in sorted(steps)])


@contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """What is wrong with a timeline is said with its name."""
    try:
        yield
    except (DamagedFileError, CoefficientsError) as error:
        raise CoefficientsError(f"{path} is not a readable timeline: {error}") from error
