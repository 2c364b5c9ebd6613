"""`coeff-diffusion push` and `pull`: a subject to and from the Hub, or a folder that looks the same.

What is shared is made in `publishing`, what may come in is decided in `shared_folder`; both sides handle the same few
files in memory, so that nothing is sent or written before all of it is checked.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from .. import __version__
from ..hub import HubError, api, asking, find_token, listing, page, split_id
from ..publishing.shareable import prepare
from ..sources.shared_folder import README, SAMPLE, check, check_target, fetch, of_adapter, read_folder, write_folder
from ..subject.coefficients import Coefficients
from ..subject.errors import cut, shown
from ..subject.printable import printable
from ..subject.safetensors_file import FILE_NAME
from ..subject.user_file import user_path
from .config import PullConfig, PushConfig

NEW_REPOSITORY = {".gitattributes", README}  # what the Hub itself puts into a new one
Say = Callable[[str], None]


def push(config: PushConfig, say: Say = print, token: str | None = None) -> str:
    """Share a subject and return where it is now: the URL of its page, or the folder.

    Args:
        say: gets one line per fact the user wants to know.
        token: an access token that was typed; it wins over all others.

    Raises:
        CoefficientsError (also as HubError or LayoutError), OSError: with a message of one line; nothing was written.
    """
    source, folder, repo = user_path(config.subject), local_folder(config.repo), config.repo
    what = "is on the Hub, which keeps its old versions" if folder is None else "is a folder, not on the Hub"
    useless = ("overwrite",) if folder is None else ("private", "message", "token_file")
    given = [f"--{name}" for name in useless if getattr(config, name)]
    for wrong, problem in (
        (not source.exists(), f"there is no {source}; give a training run's folder, a .safetensors file or a card"),
        (given, f"there is no use for {' and '.join(given)}: {repo} {what}"),
        (
            folder is None and split_id(repo)[1],
            f"a subject is pushed to the main branch; give {repo.partition('@')[0]} alone",
        ),
    ):
        if wrong:
            raise HubError(problem)
    if folder is not None:
        check_target(folder, config.overwrite)
    where = page(repo) if folder is None else str(folder)
    files = prepare(source, config.license, say)
    _list(files, say)
    if config.dry_run:
        say(f"would go to {where}; nothing was written")
        return where
    if folder is None:
        _upload(files, config, say, token)
    else:
        write_folder(files, folder, config.overwrite)
    say(where)
    return where


def pull(config: PullConfig, say: Say = print) -> Path:
    """Fetch a shared subject and return its folder.

    Raises:
        CoefficientsError (also as HubError or LayoutError), OSError: with a message of one line; nothing was written.
    """
    target, folder = user_path(config.output), local_folder(config.repo)
    check_target(target, config.overwrite)
    if folder is not None and config.revision is not None:
        raise HubError(f"--revision only means something for the Hub, but {config.repo} is a folder")
    name = f"{config.repo}@{config.revision}" if config.revision else config.repo
    files = fetch(name) if folder is None else read_folder(folder)
    subject = check(files, config.repo)
    files |= {} if subject.adapter is None else subject.adapter.files
    write_folder(files, target, config.overwrite)
    _list(files, say)
    say(f"{_title(subject)} is in {target}")
    return target


def local_folder(text: str) -> Path | None:
    """The folder that is meant, or None where it is an id on the Hub.

    A folder is there already, or looks like a path: with `.`, `/`, `~` or a drive in front, or a backslash.
    """
    path = user_path(text)
    looks_so = text.startswith((".", "/", "~")) or "\\" in text or text[1:2] == ":"
    return path if looks_so or path.is_dir() else None


def _upload(files: Mapping[str, bytes], config: PushConfig, say: Say, token: str | None) -> None:
    """One commit, into a repository that is new or holds a subject already."""
    repo, token = config.repo, token or find_token(config.token_file)
    hub = api(token)
    with asking(repo):  # not private: what the owner's default says, which mostly is public
        hub.create_repo(repo, private=config.private or None, exist_ok=True)
    before = listing(repo, token=token)
    if config.private and not before.private:
        raise HubError(f"{repo} is there and public; make it private in its settings first, or take another name")
    others = sorted(set(before.sizes) - NEW_REPOSITORY)
    if others and FILE_NAME not in before.sizes:
        raise HubError(f"{repo} holds something else ({', '.join(map(shown, others[:3]))}); take another name")
    old = [name for name in before.sizes if of_adapter(name) or SAMPLE.fullmatch(name)]  # of the last version
    title = _title(Coefficients.from_bytes(files[FILE_NAME]))
    with tempfile.TemporaryDirectory() as folder:
        write_folder(files, Path(folder), replace=True)
        with asking(repo):
            after = hub.upload_folder(
                repo_id=repo,
                folder_path=folder,
                delete_patterns=old or None,
                commit_message=config.message or f"{title} (coeff-diffusion {__version__})",
                parent_commit=before.commit,
            )
    say("nothing has changed since the last push" if after.oid == before.commit else f"pushed {title}")


def _list(files: Mapping[str, bytes], say: Say) -> None:
    """Say the size and the name of each file."""
    for name, content in files.items():
        say(f"{len(content):>10,} bytes  {name}")


def _title(subject: Coefficients) -> str:
    """A subject of unknown origin in a few words."""
    name, trigger = (printable(cut(text)) for text in (subject.info.name, subject.info.trigger))
    return f"{name or 'a subject'}" + (f' (called up by "{trigger}")' if trigger else "")
