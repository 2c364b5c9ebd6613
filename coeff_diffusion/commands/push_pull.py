"""`coeff-diffusion push` and `pull`: a subject to and from the Hub, or a folder that looks the same.

What is shared is made in `publishing`, what may come in is decided in `layout`; both sides handle the same few files in
memory, so that nothing is sent or written before all of it is checked.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .. import __version__
from ..publishing.shareable import prepare
from ..sources.hub import Hub, HubError, HubMissingError, find_token, split_id
from ..sources.shared_folder import check, check_target, read_bounded, read_folder, stale, wanted, write_folder
from ..subject.coefficients import Coefficients
from ..subject.errors import cut, shown
from ..subject.safetensors_file import FILE_NAME
from .terminal import printable

# What the Hub itself puts into a new repository.
NEW_REPOSITORY = {".gitattributes", "README.md"}


@dataclass
class PushConfig:
    """Upload a subject to the Hub: its coefficients, its card and the pictures of its last preview, nothing else."""

    subject: str = field(metadata={"positional": True})
    """The subject: folder of a training run, .safetensors file or card (a PNG that carries it)."""
    repo: str = field(metadata={"positional": True})
    """Where to: an id on the Hub (user/my-dog), or a folder (./my-dog) that gets the same files."""
    private: bool = False
    """Make a repository that only you see; one that is there and public is refused."""
    license: str | None = None
    """Licence of the subject, such as cc0-1.0 or cc-by-4.0; left out, the one it was trained with."""
    message: str | None = None
    """Message of the commit."""
    token_file: str | None = None
    """File that holds an access token; left out, the login of `hf auth login` or HF_TOKEN."""
    dry_run: bool = False
    """Only list what would be uploaded."""
    overwrite: bool = False
    """Where it goes to a folder: take the place of a subject that is there. The Hub needs no leave: it keeps earlier
    versions."""


@dataclass
class PullConfig:
    """Fetch a subject, its card and its pictures from the Hub into a new folder, once all of it is checked."""

    repo: str = field(metadata={"positional": True})
    """An id on the Hub (user/my-dog or user/my-dog@revision), or a folder with the same files."""
    output: str = field(metadata={"short": "-o"})
    """The folder to write."""
    revision: str | None = None
    """Branch, tag or commit."""
    overwrite: bool = False
    """Take the place of a subject that is in that folder."""


def push(config: PushConfig, say: Callable[[str], None] = print, token: str | None = None) -> str:
    """Share a subject and return where it is now: the URL of its page, or the folder.

    Args:
        say: gets one line per fact the user wants to know.
        token: an access token that was typed; it wins over all others.

    Raises:
        CoefficientsError (also as HubError or LayoutError), OSError: with a message of one line; nothing was written.
    """
    source = Path(config.subject).expanduser()
    if not source.exists():
        raise HubError(f"there is no {config.subject}; give a training run's folder, a .safetensors file or a card")
    folder = local_folder(config.repo)
    if folder is None and split_id(config.repo)[1] is not None:
        raise HubError(f"a subject is pushed to the main branch; give {config.repo.partition('@')[0]} alone")
    only_hub = [f"--{name}" for name in ("private", "message", "token_file") if getattr(config, name)]
    if folder is not None and only_hub:
        raise HubError(f"{' and '.join(only_hub)} only mean something for the Hub, but {config.repo} is a folder")
    if folder is not None:
        if folder.resolve() == source.resolve():
            raise HubError(f"{config.repo} is the subject itself; give another folder")
        check_target(folder, config.overwrite)
    elif config.overwrite:
        raise HubError(f"--overwrite only means something for a folder; {config.repo} keeps its old versions anyway")
    files = prepare(source, config.license, say)
    where = str(folder) if folder is not None else Hub().url(config.repo)
    for line in listing(files):
        say(line)
    if config.dry_run:
        say(f"would go to {where}; nothing was written")
        return where
    if folder is not None:
        write_folder(files, folder, config.overwrite)
    else:
        _upload(files, config, say, token)
    say(where)
    return where


def pull(config: PullConfig, say: Callable[[str], None] = print) -> Path:
    """Fetch a shared subject and return its folder.

    Raises:
        CoefficientsError (also as HubError or LayoutError), OSError: with a message of one line; nothing was written.
    """
    target, folder = Path(config.output).expanduser(), local_folder(config.repo)
    check_target(target, config.overwrite)
    if folder is not None and config.revision is not None:
        raise HubError(f"--revision only means something for the Hub, but {config.repo} is a folder")
    files = read_folder(folder) if folder is not None else _download(config.repo, config.revision)
    subject = check(files, config.repo)
    write_folder(files, target, config.overwrite)
    for line in listing(files):
        say(line)
    say(f"{_title(subject)} is in {target}")
    return target


def listing(files: Mapping[str, bytes]) -> list[str]:
    """One line per file: its size and its name."""
    width = max(len(f"{len(content):,}") for content in files.values())
    return [f"{len(content):>{width},} bytes  {name}" for name, content in files.items()]


def local_folder(text: str) -> Path | None:
    """The folder that is meant, or None where it is an id on the Hub.

    A folder is there already, or looks like a path: with `.`, `/`, `~` or a drive in front, or a backslash.
    """
    path = Path(text).expanduser()
    looks_so = text.startswith((".", "/", "~")) or "\\" in text or text[1:2] == ":"
    return path if looks_so or path.is_dir() else None


def _upload(files: Mapping[str, bytes], config: PushConfig, say: Callable[[str], None], token: str | None) -> None:
    """One commit, into a repository that is new or holds a subject already."""
    repo, hub = config.repo, Hub(token or find_token(config.token_file))
    try:
        before = hub.listing(repo)
    except HubMissingError:
        hub.create(repo, config.private)
        before = hub.listing(repo)
    if config.private and not before.private:
        raise HubError(f"{repo} is there and public; make it private in its settings first, or take another name")
    others = sorted(set(before.sizes) - NEW_REPOSITORY)
    if others and FILE_NAME not in before.sizes:
        raise HubError(f"{repo} holds something else ({', '.join(map(shown, others[:3]))}); take another name")
    title = _title(check(files, repo))
    message = config.message or f"{title} (coeff-diffusion {__version__})"
    commit = hub.commit(repo, files, stale(before.sizes, files), message)
    say("nothing has changed since the last push" if commit == before.commit else f"pushed {title}")


def _download(text: str, revision: str | None) -> dict[str, bytes]:
    """The files of a repository, by way of the Hub's cache; nothing is fetched before all sizes are known."""
    repo, tagged = split_id(text)
    if tagged is not None and revision is not None:
        raise HubError(f"two revisions: {tagged!r} in {text!r} and --revision {revision!r}; give one")
    revision, hub = tagged or revision, Hub()
    before = hub.listing(repo, revision)
    names = wanted(before.sizes, repo)
    return {name: read_bounded(hub.download(repo, name, before.commit, revision), name) for name in names}


def _title(subject: Coefficients) -> str:
    """A subject of unknown origin in a few words."""
    name, trigger = (printable(cut(text)) for text in (subject.info.name, subject.info.trigger))
    return f"{name or 'a subject'}" + (f' (called up by "{trigger}")' if trigger else "")
