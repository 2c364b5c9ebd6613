"""The subject of every Nth training step in one file, kept because each is only a few kilobytes.

One safetensors file. Tensors: `step_000010/<name>`, where `<name>` is what the tensor is called in a subject's own file
(`unet/<attention path>.coeff`, `text_encoder/token`). Metadata, all strings: `format` = `coeff-diffusion-timeline`,
`format_version` = `1`, `infos` = JSON object of `CoefficientsInfo` by step, `losses` = JSON list of the training loss
of every step from the first. Never pickle.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..subject.atomic_write import atomic_write
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.info import CoefficientsInfo
from ..subject.safetensors_file import serialize
from ..subject.user_file import check_file, read_file
from .model_card import card_of_step
from .run_folder import RunFolder

FORMAT = "coeff-diffusion-timeline"
VERSION = "1"
MAX_BYTES = 256 * 1024 * 1024
MAX_CARD = 2**20  # bytes of the model card


def save_timeline(path: str | Path, timeline: Mapping[int, Coefficients], losses: Sequence[float] = ()) -> None:
    """Write all kept steps in one move; the same steps give the same bytes.

    Args:
        timeline: the subject by training step.
        losses: of every step, kept to six digits.
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
    with atomic_write(path) as file:
        file.write(serialize(tensors, metadata))


def load_timeline(path: str | Path) -> dict[int, Coefficients]:
    """The subject by training step, in order.

    Raises:
        CoefficientsError: the file is missing, damaged or something else.
    """
    tensors, metadata = _read(Path(path))
    steps: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        step, _, name = key.partition("/")
        if not step.removeprefix("step_").isdecimal() or not name:
            raise CoefficientsError(f"{path} holds {key!r}, expected step_<number>/<name>")
        steps.setdefault(int(step.removeprefix("step_")), {})[name] = tensor
    try:
        infos = {int(step): CoefficientsInfo.from_json(text) for step, text in json.loads(metadata["infos"]).items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CoefficientsError(f"{path} does not say where its steps came from ({error})") from error
    if infos.keys() != steps.keys():
        raise CoefficientsError(f"{path} describes the steps {sorted(infos)} and holds the steps {sorted(steps)}")
    try:
        return {step: Coefficients.from_named_tensors(named, infos[step]) for step, named in sorted(steps.items())}
    except CoefficientsError as error:
        raise CoefficientsError(f"{path}: {error}") from error


def load_losses(path: str | Path) -> list[float]:
    """The training loss of every step up to the last one that was kept.

    Raises:
        CoefficientsError: the file is missing, damaged or something else.
    """
    try:
        return [float(loss) for loss in json.loads(_read(Path(path))[1]["losses"])]
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, CoefficientsError):
            raise
        raise CoefficientsError(f"{path} does not hold the losses ({error})") from error


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
    steps[step].save(file)
    if run.card.is_file() and not run.card.is_symlink():
        edited = read_file(run.card, MAX_CARD, CoefficientsError)  # by someone, perhaps in another encoding
        text = edited.decode("utf-8", errors="surrogateescape")
        with atomic_write(run.card) as card:
            card.write(card_of_step(text, step).encode("utf-8", errors="surrogateescape"))
    return steps[step]


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        check_file(path, MAX_BYTES)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if (found := metadata.get("format")) != FORMAT:
                raise CoefficientsError(f"{path} is not a timeline: its format is {found!r}, expected {FORMAT!r}")
            if (version := metadata.get("format_version")) != VERSION:
                raise CoefficientsError(f"{path} is a timeline of version {version!r}, expected {VERSION!r}; update")
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CoefficientsError(f"{path} is not a readable timeline ({error})") from error
