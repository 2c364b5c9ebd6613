"""What of a subject is shown to others, and what stays at home.

Others get the coefficients, a card, and pictures that were drawn, which they need to judge and to draw again. They do
not get settings, logs, checkpoints, the timeline or photos, and nothing that names a folder of this computer:
`config.yaml` consists of such names, and what else it says (steps, rates, seed) is in the card and in the file.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from PIL import Image, PngImagePlugin

from ..images.files import PARAMETERS, find_parameters
from ..images.generation_info import PictureError, format_parameters, parse_parameters
from ..sources.open import open_subject
from ..sources.shared_folder import MAX_README, MAX_SAMPLE, MAX_SAMPLES, README, check, is_ours
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.safetensors_file import FILE_NAME
from ..training.model_card import is_hub_id, is_public, subject_card
from ..training.run_folder import OutputFolder

MAX_PIXELS = 64 * 2**20
# Paths from the root, with a drive letter, or of a network share; not the paths of web addresses.
ROOTS = "home|Users|root|mnt|media|Volumes|tmp|var|opt|srv|data|workspace"
LOCAL_PATH = re.compile(rf"(?:(?<![\w.:/\\-])|(?<=file://))(?:/(?:{ROOTS})/[\w.-]+|[A-Za-z]:[\\/][\w.-]+|\\\\[\w.-]+)")


@dataclass(frozen=True)
class Sample:
    """A picture that was drawn, with nothing in its file but the pixels and how it was drawn."""

    png: bytes
    prompt: str


def prepare(source: Path, license: str | None = None, say: Callable[[str], None] = print) -> dict[str, bytes]:
    """The files that others get, by their paths in the layout of a shared subject.

    Args:
        source: the folder of a training run, or of a shared subject; a `.safetensors` file; or a card.
        license: take this one instead of the subject's own.
        say: gets a line for everything that would be expected in there but is left out.

    Raises:
        CoefficientsError: there is no subject, or its info names a folder of this computer.
    """
    found = open_subject(source)
    subject = published(found, license)
    samples = dict(_samples(source, say))
    card = _own_card(source / README, found, samples, say) if source.is_dir() else None
    if card is None:
        card = subject_card(subject, {name: sample.prompt for name, sample in samples.items()})
    elif license is not None:
        card = _with_license(card, subject)
    files = {FILE_NAME: subject.to_bytes(), README: card.encode()}
    files |= {name: sample.png for name, sample in samples.items()}
    check(files, str(source))
    return files


def published(subject: Coefficients, license: str | None = None) -> Coefficients:
    """A subject without the name of a base that only its maker has; its fingerprint still tells which one it is.

    Raises:
        CoefficientsError: its info names a folder of this computer.
    """
    info = subject.info
    if not is_public(info.base_model):
        info = replace(info, base_model="", base_revision="")
    if license is not None:
        info = replace(info, license=license)
    for text in _texts(vars(info)):
        if path := local_path_in(text):
            raise CoefficientsError(
                f"the info of this subject holds the path {path!r}, which everybody could read; save it without: "
                "Coefficients.load(...).replace(info=...).save(...)"
            )
    return subject.replace(info=info)


def local_path_in(text: str) -> str | None:
    """The first path of a computer that a text names."""
    home = str(Path.home())
    found = LOCAL_PATH.search(text.replace(home, "/home/me") if len(home) > 1 else text)
    return found[0] if found else None


# --- pictures ---------------------------------------------------------------------------------------------------------


def _samples(source: Path, say: Callable[[str], None]) -> Iterator[tuple[str, Sample]]:
    """The pictures of the latest preview, of a folder that has none all samples, or the card itself."""
    if source.is_dir():
        paths = OutputFolder(source).newest_samples() or sorted((source / "samples").glob("*"))
    else:
        paths = [source] if source.suffix.lower() == ".png" else []
    for path in paths[:MAX_SAMPLES]:
        name = f"samples/{path.name}" if source.is_dir() else "samples/card.png"
        try:
            yield name, _sample(path, name)
        except PictureError as error:
            say(f"left out {name}: {error}")
    if len(paths) > MAX_SAMPLES:
        say(f"left out {len(paths) - MAX_SAMPLES} samples: only {MAX_SAMPLES} are shown")


def _sample(path: Path, name: str) -> Sample:
    """A picture of ours made fit for others.

    Raises:
        PictureError: it does not say how it was drawn, so that it may be a photo; or others could not have it.
    """
    if not is_ours(name) or path.suffix != ".png" or path.is_symlink() or path.parent.is_symlink():
        raise PictureError("expected a .png file with a plain name, and no symbolic link")
    text = find_parameters(path)
    if text is None:
        raise PictureError("it does not say how it was drawn, so it may be a photo")
    parameters = parse_parameters(text)
    if not is_public(parameters.model or ""):
        parameters = replace(parameters, model=None)
    text = format_parameters(parameters)
    if local := local_path_in(text):
        raise PictureError(f"its parameters name {local!r}")
    info = PngImagePlugin.PngInfo()
    info.add_text(PARAMETERS, text)
    data = io.BytesIO()
    _pixels(path).save(data, format="PNG", pnginfo=info)
    if data.tell() > MAX_SAMPLE:
        raise PictureError(f"it has {data.tell()} bytes, expected at most {MAX_SAMPLE}")
    return Sample(data.getvalue(), parameters.prompt)


def _pixels(path: Path) -> Image.Image:
    """A picture without anything else that its file holds: place, camera, program, ..."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"it has {image.width} x {image.height} pixels, expected at most {MAX_PIXELS}")
            picture = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError(f"it is not a readable picture: {error}") from error
    picture.info.clear()
    return picture


# --- card -------------------------------------------------------------------------------------------------------------


def _own_card(
    path: Path, subject: Coefficients, samples: Mapping[str, Sample], say: Callable[[str], None]
) -> str | None:
    """The card that lies beside the subject, if it is one that others may have."""
    if not path.exists():
        return None
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_README:
            raise ValueError(f"it is no regular file of at most {MAX_README} bytes")
        text = path.read_text("utf-8")
        _check_card(text, subject, samples)
    except (OSError, ValueError, yaml.YAMLError) as error:
        say(f"the card is made anew, {path.name} is left out: {' '.join(str(error).split())[:200]}")
        return None
    return text


def _check_card(text: str, subject: Coefficients, samples: Mapping[str, Sample]) -> None:
    """Raises ValueError or YAMLError: the Hub would not take it, it shows what is not there, or tells too much."""
    head = re.match(r"---\s*\n(.*?)\n---\s*\n", text, re.DOTALL)
    data = yaml.safe_load(head[1]) if head else None
    if not isinstance(data, dict):
        raise ValueError("it does not begin with a YAML head between two lines of ---")
    bases = data.get("base_model") or []
    foreign = [base for base in (bases if isinstance(bases, list) else [bases]) if not is_hub_id(str(base))]
    if foreign:
        raise ValueError(f"its base_model {foreign[0]!r} is not on the Hub")
    base = subject.info.base_model
    if base and not is_public(base) and re.search(rf"[`\"/\\]{re.escape(base)}[`\"/\\]", text):
        raise ValueError(f"it names the base {base!r}, which is not public")
    if local := local_path_in(text):
        raise ValueError(f"it names {local!r}")
    missing = [name for name in re.findall(r"samples/[\w.-]*\w", text) if name not in samples]
    if missing:
        raise ValueError(f"it shows {missing[0]}, which is not there")


def _with_license(text: str, subject: Coefficients) -> str:
    """A card with the licence that a card of the subject would have."""
    card, made = ModelCard(text, ignore_metadata_errors=True), ModelCard(subject_card(subject, {}))
    for key in ("license", "license_name"):
        card.data.pop(key)
        if value := made.data.get(key):
            card.data[key] = value
    return str(card)


def _texts(value: Any) -> Iterator[str]:
    """All texts in nested mappings and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*_texts(key), *_texts(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
