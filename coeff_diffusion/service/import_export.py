"""Subjects that come in and go out: files, cards, QR codes, the Hub."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_token

from ..commands.card import make_card_file
from ..commands.config import CardConfig, PullConfig, PushConfig, QrConfig
from ..commands.push_pull import local_folder, pull, push
from ..commands.qr import make_qr_file
from ..hub import TOKEN, HubError, api, asking, split_id
from ..images.generation_info import PictureError
from ..sources.library import plain_name
from ..sources.open import extract_any, open_subject, picture_kind
from ..sources.shared_folder import name_for
from ..subject.coefficients import Coefficients
from ..subject.errors import CoefficientsError
from ..subject.safetensors_file import FILE_NAME, MAX_FILE
from ..subject.user_file import read_file
from .library_view import Entry, LibraryView
from .messages import by_name

MAX_ID = 200  # characters of a Hub id or of a folder's name
MAX_TOKEN = 500


class ReplaceError(HubError):
    """A push would replace a subject, and nobody has said yet that it may."""


@dataclass(frozen=True)
class Export:
    """A file that is handed out.

    Attributes:
        notes: sentences for the user about what is in it.
    """

    file_name: str
    content: bytes
    notes: list[str]


@dataclass(frozen=True)
class PushRequest:
    """What to share, and where.

    Attributes:
        name: of the library.
        repo: id on the Hub.
        token: an access token; empty takes that of the environment or of the login. It is kept nowhere.
        replace: take the place of a subject that is there.
    """

    name: str
    repo: str
    private: bool = False
    token: str = field(default="", repr=False)
    replace: bool = False


class ImportExport:
    """Imports into a library and exports from it.

    Attributes:
        folders: whether a folder of this computer may be named to import from; not where others can reach the page.
    """

    def __init__(self, library_view: LibraryView, folders: bool = True) -> None:
        self.library_view, self.library, self.folders = library_view, library_view.library, folders

    # --- in -----------------------------------------------------------------------------------------------------------

    def add(self, file: str | Path) -> list[str]:
        """Take in a subject's file, or each subject of a picture that carries some; returns their names.

        Those that are there already are not taken in once more.

        Raises:
            CoefficientsError: there is no subject in it, or a damaged one. Nothing was taken in then.
        """
        path = Path(file)
        with by_name(path):
            is_picture = picture_kind(path) is not None
            subjects = extract_any(path) or [open_subject(path)]
        names = [_own_name(subject) if is_picture else name_for(path, subject) for subject in subjects]
        return [self.library.join(subject, name or path.stem) for subject, name in zip(subjects, names, strict=True)]

    def pull(self, source: str) -> str:
        """Fetch a shared subject with its pictures into a folder of its own; returns its name.

        Args:
            source: an id on the Hub, "user/my-dog" or "user/my-dog@revision", or a folder with the same files.

        Raises:
            CoefficientsError (also as HubError or LayoutError), OSError: nothing was taken in.
        """
        source = _short(source)
        folder = self._folder(source)
        if folder is not None and not self.folders:
            raise HubError("a folder cannot be named on this page; give an id on the Hub, such as user/my-dog")
        name = folder.resolve().name if folder is not None else split_id(source)[0].partition("/")[2]
        name = self.library.free_name(name)
        target = self.library.folder.resolve() / name
        with by_name(target):
            pull(PullConfig(repo=source, output=str(target)), say=lambda line: None)
        return name

    @staticmethod
    def _folder(source: str) -> Path | None:
        try:
            return local_folder(source)
        except (ValueError, OSError) as error:  # a name that no file can have
            raise HubError(f"{source!r} is neither an id on the Hub, such as user/my-dog, nor a folder") from error

    # --- out ----------------------------------------------------------------------------------------------------------

    def file(self, name: str) -> Export:
        """The subject's own file.

        Raises:
            CoefficientsError: there is none of this name, or it is damaged.
        """
        entry = self._readable(name)
        notes = []
        if entry.info.adapter:
            beside = entry.path.with_name(entry.info.adapter_file)
            notes = [f"it draws with its adapter alone, which is a file of its own: {beside}"]
        return Export(_file_name(name, ".safetensors"), read_file(entry.path, MAX_FILE), notes)

    def card(self, name: str, picture: str | Path | None = None) -> Export:
        """A PNG that carries the subject.

        Args:
            picture: the picture; None takes the latest preview of its training.

        Raises:
            CoefficientsError, PictureError: there is no picture, or it cannot carry this subject.
        """
        entry = self._readable(name)
        found = Path(picture) if picture else self.library_view.sample(entry)
        if found is None:
            raise PictureError(f"there is no sample of {name!r} to make a card of; choose a picture")
        with by_name(entry.path, found):
            return _made(
                _file_name(name, "-card.png"),
                lambda output, say: make_card_file(CardConfig(str(entry.path), str(found), str(output)), say),
            )

    def qr(self, name: str, picture: str | Path | None = None) -> Export:
        """A PNG of a QR code; its notes say how much the numbers were rounded.

        Args:
            picture: what to show above the code; None leaves the code alone.

        Raises:
            CoefficientsError, PictureError, DatasetError: it does not fit into a code, or the picture cannot be read.
        """
        entry, above = self._readable(name), str(picture) if picture else None
        with by_name(entry.path, *([Path(above)] if above else [])):
            return _made(
                _file_name(name, "-qr.png"),
                lambda output, say: make_qr_file(QrConfig(str(entry.path), str(output), above), say),
            )

    def push(self, request: PushRequest) -> list[str]:
        """Upload a subject to the Hub; returns what was sent and where it is, a line each.

        Raises:
            ReplaceError: there is a subject, and `replace` is not set.
            CoefficientsError (also as HubError or LayoutError), OSError: nothing was written.
        """
        repo, token = _short(request.repo), request.token.strip()
        if split_id(repo)[1] is not None:
            raise HubError(f"a subject is pushed to the main branch; give {repo.partition('@')[0]} alone")
        if self._folder(repo) is not None:
            raise HubError(f"{repo} is a folder of this computer; from here a subject goes to the Hub only")
        if token and (len(token) > MAX_TOKEN or not TOKEN.fullmatch(token)):
            raise HubError("the token is not one word of plain letters; copy it again from Settings, Access Tokens")
        if not token and not get_token():
            raise HubError("there is no token: type one, or log in with `hf auth login` where this page runs")
        unit = self.library.unit_of(self._readable(request.name).path)
        if not request.replace and _holds_subject(repo, token):
            raise ReplaceError(f"{repo} holds a subject already; to put this one in its place, say so")
        lines: list[str] = []
        with by_name(unit):
            push(PushConfig(str(unit), repo, request.private), lines.append, token or None)
        return [line.strip() for line in lines]

    def _readable(self, name: str) -> Entry:
        entry = self.library_view.entry(name)
        if entry.damaged:
            raise CoefficientsError(f"{name!r} cannot be read: {entry.damaged}")
        return entry


def _made(file_name: str, make: Callable[[Path, Callable[[str], None]], Path]) -> Export:
    """What `make` writes and says, under another name."""
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        output = make(Path(folder) / "made.png", lines.append)
        return Export(file_name, output.read_bytes(), [line.replace(str(output), file_name) for line in lines])


def _file_name(name: str, ending: str) -> str:
    """What a subject's file is called where it goes: the last part of what it is listed under."""
    return plain_name(Path(name).name) + ending


def _own_name(subject: Coefficients) -> str:
    return subject.info.name or subject.info.trigger


def _short(text: str) -> str:
    text = text.strip()
    if not text:
        raise HubError("give an id on the Hub, such as user/my-dog")
    if len(text) > MAX_ID:
        raise HubError(
            f"this has {len(text):,} characters; an id on the Hub, such as user/my-dog, has at most {MAX_ID}"
        )
    return text


def _holds_subject(repo: str, token: str) -> bool:
    with asking(repo):
        return api(token or None).file_exists(repo, FILE_NAME)
