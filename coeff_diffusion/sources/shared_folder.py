"""What a shared subject consists of, the same in a folder and in a repository of the Hub:

    coefficients.safetensors    the subject
    pytorch_lora_weights.safetensors    the adapter that it learned with, where it did: one of `ADAPTER_FILES`
    adapter_config.json                 what tells PEFT of an adapter in its form; written with it, never read
    README.md                   its model card (may be missing)
    samples/*.png               pictures that show it (may be missing; also .jpg, .jpeg and .webp)

Whatever else lies beside these is not read, not fetched and not written, so no name leads anywhere else. What comes
from strangers is held against `MAX_...`, and appears only when all of it is valid.
"""

import re
import tempfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from ..hub import HubError, HubUnreachableError, api, asking, listing, split_id
from ..subject.adapter import MAX_ADAPTER, Adapter
from ..subject.adapter_kind import AdapterKind
from ..subject.adapter_methods import ADAPTER_FILES, PEFT_CONFIG
from ..subject.atomic_write import errors_named
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError, listed, shown
from ..subject.safetensors_file import FILE_NAME, MAX_FILE
from ..subject.user_file import is_noise

README = "README.md"
SAMPLE = re.compile(r"samples/[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\.(png|jpg|jpeg|webp)", re.ASCII)
NAMELESS = re.compile(r"(?i)coefficients[\W_]*(copy|kopie|copie|copia)?[\W_]*\d*[\W_]*\.safetensors(\.\w+)?")
"""What all shared subjects are called, and what browsers, systems and messengers make of it for the second one."""
STARTS = {"png": rb"\x89PNG\r\n\x1a\n", "jpg": rb"\xff\xd8\xff", "jpeg": rb"\xff\xd8\xff", "webp": rb"RIFF.{4}WEBP"}

MAX_SAMPLE = 8 * 2**20
MAX_BYTES = {
    FILE_NAME: MAX_FILE,
    README: 2**20,
    **dict.fromkeys(ADAPTER_FILES, MAX_ADAPTER),
}  # and `MAX_SAMPLE` of each picture
MAX_SAMPLES = 32


class LayoutError(CoefficientsError):
    """A folder or repository is not a shared subject, or may not be written."""


def is_ours(name: str) -> bool:
    """Whether a file of a shared subject is read, by its path below the folder."""
    return name in MAX_BYTES or SAMPLE.fullmatch(name) is not None


def name_for(file: Path, subject: Coefficients) -> str:
    """What a subject is to be called: as its file is, but for the name that all of them have."""
    own = subject.info.name or subject.info.trigger
    return (own if NAMELESS.fullmatch(file.name) else "") or file.stem


def of_adapter(name: str) -> bool:
    """Whether a file belongs to an adapter, read or only written."""
    return name in (*ADAPTER_FILES, PEFT_CONFIG)


def wanted(sizes: Mapping[str, int | None], where: str) -> list[str]:
    """The files of a shared subject among others, if they are neither too large nor too many.

    Args:
        sizes: bytes of each file, None if unknown, by its path below the folder or repository.
        where: what the errors call it.

    Raises:
        LayoutError: it holds no subject, or more or larger files than a subject has.
    """
    names = [name for name in sizes if is_ours(name)]
    facts = [(f"{shown(name)} has", sizes[name], "bytes", MAX_BYTES.get(name, MAX_SAMPLE)) for name in names]
    facts.append(("there are", len(set(names) - set(MAX_BYTES)), "samples", MAX_SAMPLES))
    if problems := [
        f"{start} {'an unknown number of' if size is None else size} {what}, expected at most {most}"
        for start, size, what, most in facts
        if size is None or not 0 <= size <= most
    ]:
        raise LayoutError(f"{where} is refused: {listed(problems)}")
    if FILE_NAME not in names:
        raise LayoutError(f"{where} holds no {FILE_NAME}, so it is not a subject")
    return names


def check(files: Mapping[str, bytes], where: str) -> Coefficients:
    """The subject in files that were read, with every check there is.

    Raises:
        LayoutError: the subject is not valid, or another file is too large or not what its name says.
    """
    wanted({name: len(content) for name, content in files.items()}, where)
    for name, content in files.items():
        if (sample := SAMPLE.fullmatch(name)) and not re.match(STARTS[sample[1]], content, re.DOTALL):
            raise LayoutError(f"{where} is refused: {name} is not the kind of picture its name says")
    try:
        files.get(README, b"").decode()
        subject = Coefficients.from_bytes(files[FILE_NAME])
    except UnicodeDecodeError as error:
        raise LayoutError(f"{where} is refused: {README} is not text in UTF-8") from error
    except CoefficientsError as error:
        raise LayoutError(f"{where}: {FILE_NAME}: {error}") from error
    info = subject.info
    own = info.adapter_file if info.adapter else ""
    others = [name for name in ADAPTER_FILES if name in files and name != own]
    if others or (own and own not in files):
        one = f"learned with an adapter ({info.adapter})" if own else "learned without adapter"
        there = f"{listed(others)} is there" if others else f"{own} is not there"
        raise LayoutError(f"{where} is refused: its subject {one}, but {there}")
    if not own:
        return subject
    try:
        kind = AdapterKind.parse(info.adapter)
        return subject.replace(adapter=Adapter.from_bytes(files[own], kind, info.adapter_sha256))
    except CoefficientsError as error:
        raise LayoutError(f"{where}: {own}: {error}") from error


def read_folder(folder: Path) -> dict[str, bytes]:
    """The files of a shared subject in a folder, for `check`: of one that is too large no more than shows it.

    Raises:
        LayoutError: there is no folder, or a symbolic link in it, which may lead anywhere.
    """
    if not folder.is_dir():
        raise LayoutError(f"there is no folder {folder}")
    samples = sorted(path for path in folder.glob("samples/*") if is_ours(f"samples/{path.name}"))[: MAX_SAMPLES + 1]
    paths = [*(folder / name for name in MAX_BYTES), folder / "samples", *samples]
    if links := [path.name for path in paths if path.is_symlink()]:
        raise LayoutError(f"the folder {folder} is refused: {listed(links)} is a symbolic link; give the file itself")
    files = {}
    for path in filter(Path.is_file, paths):
        name = path.relative_to(folder).as_posix()
        with path.open("rb") as file:
            files[name] = file.read(MAX_BYTES.get(name, MAX_SAMPLE) + 1)
    return files


def fetch(text: str) -> dict[str, bytes]:
    """The files of "user/repo" or "user/repo@revision", for `check`; all sizes are known before any is fetched.

    Raises:
        HubError, LayoutError: there is no subject, it is too large, or the Hub does not give it.
    """
    repo, revision = split_id(text)
    found = listing(repo, revision)
    names = wanted(found.sizes, repo)
    with tempfile.TemporaryDirectory() as folder:
        with asking(repo, revision):
            for name in names:  # no patterns: `samples\\a.png`, of any size, would match that of `samples/a.png`
                api().hf_hub_download(repo, name, revision=found.commit, local_dir=folder)
        return read_folder(Path(folder))


def fetch_file(text: str, name: str) -> Path:
    """A file of "user/repo" or "user/repo@revision", in the Hub's cache.

    Args:
        name: that of the subject, or of its adapter.

    Its size is known before it is fetched. Without a network the cached one is taken.

    Raises:
        HubError, LayoutError: there is none, it is too large, or the Hub does not give it.
    """
    repo, revision = split_id(text)
    try:
        there = listing(repo, revision).sizes
        wanted({file: size for file, size in there.items() if file in (FILE_NAME, name)}, "it")
        if name not in there:
            raise LayoutError(f"it holds no {name}")
        with asking(repo, revision):  # by the revision, so that the cache learns which commit that is
            found = api().hf_hub_download(repo, name, revision=revision)
    except (HubError, LayoutError) as error:
        unreachable = isinstance(error, HubUnreachableError)
        cached = try_to_load_from_cache(repo, name, revision=revision) if unreachable else None
        if not isinstance(cached, str):
            raise type(error)(f"there is no file {text}, and the Hub does not give it: {error}") from None
        found = cached
    return Path(found).resolve()  # the cache holds links into its own store; a subject may not be one


def check_target(folder: Path, replace: bool) -> None:
    """Whether a shared subject may be written as this folder.

    Raises:
        LayoutError: it is there and `replace` is not set, or it holds something else, which would be lost.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise LayoutError(f"{folder} is no folder; give the name of a new one")
    if folder.exists() and not replace:
        raise LayoutError(f"the folder {folder} exists; take another name, or replace what is in it with --overwrite")
    present = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not is_noise(path.name))
    others = (name for name in present if name != "samples" and not is_ours(name) and not of_adapter(name))
    if foreign := list(islice(map(shown, others), 3)):
        raise LayoutError(f"the folder {folder} holds more than a subject, which would be lost: {listed(foreign)}")


def write_folder(files: Mapping[str, bytes], folder: Path, replace: bool = False) -> None:
    """Write a shared subject as a folder, which appears complete or not at all.

    Args:
        replace: take the place of a subject that is there.

    Raises:
        LayoutError: see `check_target`. OSError: it cannot be written; what was there is as before.
    """
    check_target(folder, replace)
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as staging:
        new, old = Path(staging, "new"), Path(staging, "old")
        for name, content in files.items():
            with errors_named(folder / name):
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                (new / name).write_bytes(content)
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
