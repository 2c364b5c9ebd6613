"""What of a subject is shown to others, and what stays at home.

Others get the coefficients, the adapter that learned with them, a model card, and pictures that were drawn, which they
need to judge and to draw again. They do not get settings, logs, checkpoints, the timeline or photos, and nothing that
names a folder of this computer:
`config.yaml` consists of such names, and what else it says (steps, rates, seed) is in the card and in the file.
"""

import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from huggingface_hub import ModelCard
from yaml import YAMLError

from ..images.files import find_drawing, png_info
from ..images.generation_info import Parameters, PictureError, format_parameters
from ..images.photo import read_image
from ..sources.open import open_subject, picture_kind
from ..sources.shared_folder import MAX_BYTES, MAX_SAMPLE, MAX_SAMPLES, README, check, is_ours
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, UserError
from ..subject.safetensors_file import FILE_NAME
from ..subject.user_file import read_text
from ..training.model_card import is_public, subject_card
from ..training.run_folder import OF_THE_BASE, RunFolder

Say = Callable[[str], None]
# Paths from the root, with a drive letter, or of a network share; not the paths of web addresses.
ROOTS = "home|Users|root|mnt|media|Volumes|tmp|var|opt|srv|data|workspace"
LOCAL_PATH = re.compile(rf"(?:(?<![\w.:/\\-])|(?<=file://))(?:/(?:{ROOTS})/[\w.-]+|[A-Za-z]:[\\/][\w.-]+|\\\\[\w.-]+)")


def prepare(source: Path, license: str | None = None, say: Say = print) -> dict[str, bytes]:
    """The files that others get, by their paths in the layout of a shared subject.

    Args:
        source: the folder of a training run, or of a shared subject; a `.safetensors` file; or a card.
        license: take this one instead of the subject's own.
        say: gets a line for everything that would be expected in there but is left out.

    Raises:
        CoefficientsError: there is no subject, it is too large, or its info names a folder of this computer.
    """
    found = open_subject(source)
    subject = _published(found, license)
    samples = dict(_samples(source, say))
    made = card = subject_card(subject, {name: _drawn(png).prompt for name, png in samples.items()})
    if (source / README).is_file():
        try:
            card = _own_card(source / README, found.info.base_model, samples)
        except (ValueError, YAMLError) as error:
            say(f"the card is made anew, {README} is left out: {' '.join(str(error).split())[:200]}")
    if license is not None:
        own, new = ModelCard(card, ignore_metadata_errors=True), ModelCard(made)
        for key in ("license", "license_name"):
            own.data[key] = new.data.get(key)
        card = str(own)
    adapter = {} if subject.adapter is None else subject.adapter.files
    files = {FILE_NAME: subject.to_bytes(), **adapter, README: card.encode(), **samples}
    check(files, str(source))
    return files


def _published(subject: Coefficients, license: str | None) -> Coefficients:
    """A subject without the name of a base that only its maker has; its fingerprint still tells which one it is."""
    info = subject.info
    if not is_public(info.base_model):
        info = replace(info, base_model="", base_revision="")
    if license is not None:
        info = replace(info, license=license)
    texts = map(json.loads, re.findall(r'"(?:[^"\\]|\\.)*"', info.to_json()))
    if path := next(filter(None, map(local_path_in, texts)), None):
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


def _samples(source: Path, say: Say) -> Iterator[tuple[str, bytes]]:
    """The pictures of the latest preview, of a folder that has none all samples, or the card itself."""
    if source.is_dir():
        of_subject = (path for path in (source / "samples").glob("*") if not path.name.startswith(OF_THE_BASE))
        paths = RunFolder(source).newest_samples() or sorted(of_subject)
    else:
        kind = picture_kind(source)
        paths = [source] if kind and kind.picture == "PNG" else []
    for path in paths[:MAX_SAMPLES]:
        name = f"samples/{path.name}" if source.is_dir() else "samples/card.png"
        try:
            yield name, _sample(path, name)
        except UserError as error:
            say(f"left out {name}: {error}")
    if len(paths) > MAX_SAMPLES:
        say(f"left out {len(paths) - MAX_SAMPLES} samples: only {MAX_SAMPLES} are shown")


def _sample(path: Path, name: str) -> bytes:
    """A PNG of ours made fit for others: nothing is left in the file but the pixels and how they were drawn.

    Raises:
        PictureError, DatasetError: it may be a photo, cannot be read, or others could not have it.
    """
    if not is_ours(name) or not name.endswith(".png") or path.is_symlink() or path.parent.is_symlink():
        raise PictureError("expected a .png file with a plain name, and no symbolic link")
    parameters = _drawn(path)
    text = format_parameters(parameters if is_public(parameters.model or "") else replace(parameters, model=None))
    if local := local_path_in(text):
        raise PictureError(f"its parameters name {local!r}")
    data, picture = io.BytesIO(), read_image(path)
    picture.info.clear()  # place, camera, colour profile, ...
    picture.save(data, format="PNG", pnginfo=png_info(text))
    if data.tell() > MAX_SAMPLE:
        raise PictureError(f"it has {data.tell()} bytes, expected at most {MAX_SAMPLE}")
    return data.getvalue()


def _drawn(picture: Path | bytes) -> Parameters:
    """How a picture was drawn. Raises PictureError: it does not say so."""
    if (found := find_drawing(picture)) is None:
        raise PictureError("it does not say how it was drawn, so it may be a photo")
    return found


def _own_card(path: Path, base: str, samples: Collection[str]) -> str:
    """The card that lies beside the subject. Raises ValueError, YAMLError: others may not have it, and why."""
    text = read_text(path, MAX_BYTES[README])
    head = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
    bases = head.get("base_model") or []
    hidden = [str(one) for one in (bases if isinstance(bases, list) else [bases]) if not is_public(str(one))]
    if base and not is_public(base) and re.search(rf"[`\"'/\\]{re.escape(base)}(?![\w-])", text):
        hidden.append(base)
    missing = [name for name in re.findall(r"samples/[\w.-]*\w", text) if name not in samples]
    for reason, found in {
        "it is a symbolic link": path.is_symlink(),
        "it does not begin with a YAML head between two lines of ---": not head,
        "it names {!r}": local_path_in(text),
        "it names the base {!r}, which is not public": next(iter(hidden), None),
        "it shows {}, which is not there": next(iter(missing), None),
    }.items():
        if found:
            raise ValueError(reason.format(found))
    return text
