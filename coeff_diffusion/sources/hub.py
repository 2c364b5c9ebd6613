"""The Hub as subjects need it, asked through huggingface_hub; every refusal becomes one line that says what to do.

No token gets into a message: all that looks like one is taken out of a server's words, and the library's error, which
may quote a request, is not shown as the cause.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session

from .. import __version__
from ..subject.errors import CoefficientsError, cut
from ..subject.hub_id import HUB_ID
from ..subject.safetensors_file import FILE_NAME
from .shared_folder import wanted

TIMEOUT = 30.0  # seconds of silence
TOKEN = re.compile(r"[!-~]+")
LIKE_TOKENS = re.compile(r"\b(?:hf|api_org)_\w+|(?i:bearer)\s+\S+|[\w.+/=-]{32,}")
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
BAD_README = "Invalid metadata in README.md"  # how huggingface_hub begins a ValueError


class HubError(CoefficientsError):
    """The Hub does not give or take a subject. The message is one line: what happened, and what to do."""


class HubUnreachableError(HubError):
    """No answer: there is no network, it is switched off, or the Hub is down."""


class HubMissingError(HubError):
    """The Hub knows no such repository, or does not show it to this user."""


# What an error means: by the name of its class or of a base (httpx's or httpx2's, as huggingface_hub has it), by the
# status of an answer, or by the first digit of that.
REFUSALS: dict[str | int, tuple[type[HubError], str]] = {
    "OfflineModeIsEnabled": (HubUnreachableError, "the Hub is switched off by HF_HUB_OFFLINE; unset it to reach it"),
    "TimeoutException": (HubUnreachableError, f"the Hub did not answer within {TIMEOUT:g} seconds; try again"),
    "HTTPError": (HubUnreachableError, "the Hub cannot be reached ({kind}); check the network and try again"),
    "HFValidationError": (HubError, "{repo!r} is no id of a repository; expected one like 'user/my-dog'"),
    "GatedRepoError": (HubError, f"{{repo}} is gated: ask for access on {{page}}, and {LOG_IN}"),
    "DisabledRepoError": (HubError, "{repo} was disabled by the Hub; nothing can be done from here"),
    "RevisionNotFoundError": (HubError, "{repo} has no revision {revision!r}; {page}/commits lists them"),
    "RepositoryNotFoundError": (
        HubMissingError,
        f"there is no repository {{repo}} that you may see; check the name, and if it is private, {LOG_IN}",
    ),
    BAD_README: (HubError, "the Hub does not take the head of README.md: {says}; mend it, or give a --license"),
    401: (HubError, f"the Hub does not know the token: it is mistyped, expired or revoked; {LOG_IN}"),
    403: (HubError, f"the token does not allow this; make one that may write to {{owner!r}}, and {LOG_IN}"),
    404: (HubMissingError, "the Hub does not find {repo}, or a file of it; check the name"),
    409: (HubError, "{repo} is being changed by someone else; try again"),
    412: (HubError, "{repo} is being changed by someone else; try again"),
    429: (HubUnreachableError, "the Hub takes no more requests for now; try again in a few minutes"),
    4: (HubError, "the Hub refuses the request for {repo} (status {status}): {says}"),
    5: (HubUnreachableError, "the Hub has a problem of its own (status {status}); try again later"),
}
OTHER = (HubError, "the exchange with the Hub failed ({kind}: {says}); try again, and check that {hub} is a Hub")


class Listing(NamedTuple):
    """What a repository holds at one commit: the bytes of each file by its path, as the Hub claims them."""

    commit: str
    sizes: dict[str, int | None]
    private: bool


def split_id(text: str) -> tuple[str, str | None]:
    """`"user/repo@v1"` -> `("user/repo", "v1")`; without a revision the second is None.

    Raises:
        HubError: it is no id of a repository.
    """
    if (found := HUB_ID.fullmatch(text)) is None:
        raise HubError(f"{text!r} is no repository of the Hub; expected an id like 'user/my-dog' or 'user/my-dog@v1'")
    return found[1], found[2]


def fetch_coefficients(text: str) -> Path:
    """The file of coefficients of "user/repo" or "user/repo@revision", in the Hub's cache.

    Its size is known before it is fetched. Without a network the cached one is taken.

    Raises:
        HubError, LayoutError: there is none, it is too large, or the Hub does not give it.
    """
    hub, (repo, revision) = Hub(), split_id(text)
    try:
        commit, sizes, _ = hub.listing(repo, revision)
        wanted({name: size for name, size in sizes.items() if name == FILE_NAME}, "it")
        return hub.download(repo, FILE_NAME, commit, revision)
    except CoefficientsError as error:
        unreachable = isinstance(error, HubUnreachableError)
        cached = try_to_load_from_cache(repo, FILE_NAME, revision=revision) if unreachable else None
        if isinstance(cached, str):
            return Path(cached).resolve()  # the cache holds links into its own store; a subject may not be one
        raise type(error)(f"there is no file {text}, and the Hub does not give it: {error}") from None


def find_token(token_file: str | None = None) -> str:
    """The access token: in a file, or where huggingface_hub keeps it (HF_TOKEN, `hf auth login`).

    Raises:
        HubError: there is none. What was given is not repeated: it may be the token itself.
    """
    try:
        token = Path(token_file).expanduser().read_text("utf-8").strip() if token_file else (get_token() or "")
    except Exception as error:  # noqa: BLE001 - no file, no text, or a login that failed: each may quote the token
        why = getattr(error, "strerror", None) or type(error).__name__
        raise HubError(f"the token cannot be read ({why}); {LOG_IN}, or give another --token_file") from None
    if not TOKEN.fullmatch(token):
        problem = "the token is not one word of plain letters" if token else "there is no token"
        raise HubError(f"{problem}; {LOG_IN}, or give a --token_file that holds one")
    return token


class Hub:
    """huggingface_hub's `api`, for use within `asking`, and the two requests that more than one place makes.

    Args:
        token: an access token; by default the one of the user who is logged in, if any.
    """

    def __init__(self, token: str | None = None) -> None:
        self.api = HfApi(token=token, library_name="coeff-diffusion", library_version=__version__)

    def url(self, repo: str) -> str:
        """The page of a repository."""
        return f"{self.api.endpoint}/{repo}"

    def listing(self, repo: str, revision: str | None = None) -> Listing:
        """The files of a repository and their sizes. Raises HubError."""
        with self.asking(repo, revision):
            info = self.api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
            return Listing(str(info.sha), {f.rfilename: f.size for f in info.siblings or []}, bool(info.private))

    def download(self, repo: str, name: str, commit: str, revision: str | None = None) -> Path:
        """A regular file, in the Hub's cache. Raises HubError, also where the revision is no longer `commit`.

        It is asked for by `revision`, so that the cache learns which commit that is and serves it without a network.
        """
        with self.asking(repo, revision):
            path = Path(self.api.hf_hub_download(repo, name, revision=revision))
        if commit not in path.parts:
            raise HubError(f"{repo} changed while it was fetched; try again")
        return path.resolve()

    @contextmanager
    def asking(self, repo: str, revision: str | None = None) -> Iterator[None]:
        """Requests within wait for `TIMEOUT` where the library would wait forever, and all errors are HubError."""
        client = get_session()
        before, client.timeout = client.timeout, TIMEOUT
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever the library raises, it may quote the request and its token
            raise self._refusal(error, repo, revision) from None
        finally:
            client.timeout = before

    def _refusal(self, error: Exception, repo: str, revision: str | None) -> HubError:
        """What an error of the library means for the user."""
        if isinstance(error, RuntimeError | LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # wrapped by the threads that upload, and by the look into the cache
        kinds = [kind.__name__ for kind in type(error).__mro__]
        keys: list[str | int] = [*kinds]
        status, says = 0, str(error)
        if isinstance(error, HfHubHTTPError):
            status, says = error.response.status_code, error.server_message or "it does not say why"
            keys = [*kinds[: kinds.index("HfHubHTTPError")], status, status // 100]
        elif says.startswith(BAD_README):
            keys, says = [BAD_README], says.partition("\n")[2]
        error_type, sentence = next((REFUSALS[key] for key in keys if key in REFUSALS), OTHER)
        for secret in filter(None, (self.api.token, _logged_in())):  # a server may say it back
            says = says.replace(str(secret), "<token>")
        says = cut("".join(filter(str.isprintable, " ".join(LIKE_TOKENS.sub("<token>", says).split()))), 300)
        facts = {"repo": repo, "owner": repo.partition("/")[0], "revision": revision, "page": self.url(repo)}
        return error_type(sentence.format(**facts, kind=kinds[0], status=status, says=says, hub=self.api.endpoint))


def _logged_in() -> str | None:
    try:
        return get_token()
    except Exception:  # noqa: BLE001 - only asked to take the token out of a message
        return None
