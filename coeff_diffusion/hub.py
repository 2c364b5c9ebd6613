"""The Hub, asked through huggingface_hub: every refusal becomes one line that says what to do.

No token gets into a message: all that looks like one is taken out of a server's words, and the library's error, which
may quote a request, is not shown as the cause.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, errors, get_token, try_to_load_from_cache
from huggingface_hub.utils import get_session

from . import __version__
from .subject.errors import CoefficientsError, cut
from .subject.hub_id import HUB_ID

TIMEOUT = 30.0  # seconds of silence
TOKEN = re.compile(r"[!-~]+")
LIKE_TOKENS = re.compile(r"\b(?:hf|api_org)_\w+|(?i:bearer)\s+\S+|[\w.+/=-]{32,}")
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
NO_ANSWER = errors.HfHubHTTPError.__bases__[0]  # what is left of the HTTPErrors of httpx (or httpx2)
# What an error means: by its class, or by the status of the answer or the first digit of that.
REFUSALS: dict[type | int, str] = {
    errors.OfflineModeIsEnabled: "the Hub is switched off by HF_HUB_OFFLINE; unset it to reach it",
    errors.HFValidationError: "{repo!r} is no id of a repository; expected one like 'user/my-dog'",
    errors.GatedRepoError: f"{{repo}} is gated: ask for access on {{page}}, and {LOG_IN}",
    errors.RevisionNotFoundError: "{repo} has no revision {revision!r}; {page}/commits lists them",
    errors.RepositoryNotFoundError: "there is no model repository {repo} that you may see (a data set or a Space is "
    f"none); check the name, and if it is private, {LOG_IN}",
    401: f"the Hub does not know the token: it is mistyped, expired or revoked; {LOG_IN}",
    403: f"the token does not allow this; make one that may write to {{owner!r}}, and {LOG_IN} ({{said}})",
    404: "the Hub does not find {repo}, or a file of it; check the name",
    409: "{repo} is being changed by someone else; try again",
    412: "{repo} is being changed by someone else; try again",
    429: "the Hub takes no more requests for now; try again in a few minutes",
    5: "the Hub has a problem of its own (status {status}); try again later",
    errors.HfHubHTTPError: "the Hub refuses the request for {repo} (status {status}): {said}",
    NO_ANSWER: "the Hub cannot be reached ({kind}); check the network and try again",
    Exception: "the Hub does not give or take {repo}: {said}",
}


class HubError(CoefficientsError):
    """The Hub does not give or take something. The message is one line: what happened, and what to do."""


class HubUnreachableError(HubError):
    """No answer: there is no network, it is switched off, or the Hub is down or busy."""


class Listing(NamedTuple):
    """What a repository holds at one commit: the bytes of each file by its path, as the Hub claims them."""

    commit: str
    sizes: dict[str, int | None]
    private: bool


def api(token: str | None = None) -> HfApi:
    """huggingface_hub's own, for use within `asking`; without a token it asks as the user who is logged in, if any."""
    return HfApi(token=token, library_name="coeff-diffusion", library_version=__version__)


def page(repo: str) -> str:
    """The address of a repository."""
    return f"{HfApi().endpoint}/{repo}"


def listing(repo: str, revision: str | None = None, token: str | None = None) -> Listing:
    """The files of a repository and their sizes. Raises HubError."""
    with asking(repo, revision):
        info = api(token).model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
        return Listing(str(info.sha), {f.rfilename: f.size for f in info.siblings or []}, bool(info.private))


def cached_folder(repo: str, *names: str, revision: str | None = None) -> Path | None:
    """What an earlier download left of a repository, if there is any of these files in it."""
    for name in names:
        if isinstance(found := try_to_load_from_cache(repo, name, revision=revision), str):
            return Path(found.removesuffix(name))
    return None


def split_id(text: str) -> tuple[str, str | None]:
    """`"user/repo@v1"` -> `("user/repo", "v1")`; without a revision the second is None.

    Raises:
        HubError: it is no id of a repository.
    """
    if (found := HUB_ID.fullmatch(text)) is None:
        raise HubError(f"{text!r} is no repository of the Hub; expected an id like 'user/my-dog' or 'user/my-dog@v1'")
    return found[1], found[2]


def find_token(token_file: str | None = None) -> str:
    """The access token: in a file, or where huggingface_hub keeps it (HF_TOKEN, `hf auth login`).

    Raises:
        HubError: there is none. What was given is not repeated: it may be the token itself.
    """
    try:
        token = Path(token_file).expanduser().read_text("utf-8").strip() if token_file else (get_token() or "")
    except Exception as error:  # noqa: BLE001 - no file, no text, or a login that failed: each may quote the token
        raise HubError(f"the token cannot be read ({type(error).__name__}); {LOG_IN}, or mend --token_file") from None
    if not TOKEN.fullmatch(token):
        problem = "the token is not one word of plain letters" if token else "there is no token"
        raise HubError(f"{problem}; {LOG_IN}, or give a --token_file that holds one")
    return token


@contextmanager
def asking(repo: str, revision: str | None = None) -> Iterator[None]:
    """Requests within wait for `TIMEOUT` where the library would wait forever, and all errors are HubError."""
    client = get_session()
    before, client.timeout = client.timeout, TIMEOUT
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever the library raises, it may quote the request and its token
        raise _refusal(error, repo, revision) from None
    finally:
        client.timeout = before


def _refusal(error: Exception, repo: str, revision: str | None) -> HubError:
    """What an error of the library means for the user."""
    if isinstance(error, RuntimeError | errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # wrapped by the threads that upload, and by the look into the cache
    said = " ".join(LIKE_TOKENS.sub("<token>", getattr(error, "server_message", None) or str(error)).split())
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
    answer = (status, status // 100, errors.HfHubHTTPError)
    kinds = type(error).__mro__
    key = next(k for kind in kinds for k in (answer if kind is answer[-1] else (kind,)) if k in REFUSALS)
    unreachable = key in (errors.OfflineModeIsEnabled, NO_ANSWER, 429, 5)
    facts = {"repo": repo, "owner": repo.partition("/")[0], "page": page(repo), "revision": revision}
    text = REFUSALS[key].format(**facts, kind=kinds[0].__name__, status=status, said=cut(said, 300))
    return (HubUnreachableError if unreachable else HubError)("".join(filter(str.isprintable, text)))
