"""The Hub as subjects need it, asked through huggingface_hub; every refusal becomes one line that says what to do.

No token gets into a message: of what a server or a library says only what is known to be harmless is repeated, the
token is taken out of that, and the library's error, which may quote a request, is not shown as the cause.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, get_session

from .. import __version__
from ..subject.errors import CoefficientsError
from ..subject.safetensors_file import FILE_NAME, MAX_FILE

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")  # user/repository, user/repository@revision
TIMEOUT = 30.0  # seconds of silence
LOG_IN = "log in with `hf auth login` (or set HF_TOKEN)"
TOKEN = re.compile(r"[!-~]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
# The classes of httpx, whose major version depends on huggingface_hub's: HTTPError, of which all of its errors are.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


class HubError(CoefficientsError):
    """The Hub does not give or take a subject. The message is one line: what happened, and what to do."""


class HubUnreachableError(HubError):
    """No answer: there is no network, it is switched off, or the Hub is down."""


class HubMissingError(HubError):
    """The Hub knows no such repository, or does not show it to this user."""


@dataclass(frozen=True)
class Listing:
    """What a repository holds at one commit.

    Attributes:
        sizes: bytes of each file, by its path in the repository, as the Hub claims them.
    """

    commit: str
    sizes: Mapping[str, int | None]
    private: bool


def split_id(text: str) -> tuple[str, str | None]:
    """`"user/repo@v1"` -> `("user/repo", "v1")`; without a revision the second is None.

    Raises:
        HubError: it is no id of a repository.
    """
    found = HUB_ID.fullmatch(text)
    if found is None:
        raise HubError(f"{text!r} is no repository of the Hub; expected an id like 'user/my-dog'")
    return found[1], found[2]


def fetch_coefficients(text: str) -> Path:
    """The file of coefficients of a repository ("user/repo" or "user/repo@revision"), in the Hub's cache.

    Its size is known before it is fetched. Without a network the cached one is taken.

    Raises:
        HubError: there is none, or the Hub does not give it.
    """
    hub, (repo, revision) = Hub(), split_id(text)
    try:
        listing = hub.listing(repo, revision)
        if FILE_NAME not in listing.sizes:
            raise HubError(f"it holds no {FILE_NAME}, so it is not a subject")
        size = listing.sizes[FILE_NAME]
        if size is None or size > MAX_FILE:
            raise HubError(f"its {FILE_NAME} has {size or 'unknown'} bytes; a subject has at most {MAX_FILE}")
        return hub.download(repo, FILE_NAME, listing.commit, revision)
    except HubUnreachableError as error:
        cached = try_to_load_from_cache(repo, FILE_NAME, revision=revision)
        if isinstance(cached, str):
            return Path(cached).resolve()  # the cache holds links into its own store; a subject may not be one
        raise _no_file(text, error) from None
    except HubError as error:
        raise _no_file(text, error) from None


def _no_file(text: str, error: HubError) -> HubError:
    return type(error)(f"there is no file {text}, and the Hub does not give it: {error}")


def find_token(token_file: str | None = None) -> str:
    """The access token: in a file, or where huggingface_hub keeps it (HF_TOKEN, `hf auth login`).

    Raises:
        HubError: there is none. What was given is not repeated: it may be the token itself.
    """
    try:
        token = Path(token_file).expanduser().read_text("utf-8").strip() if token_file else (get_token() or "")
    except OSError as error:
        raise HubError(f"the file with the token cannot be read: {error.strerror or type(error).__name__}") from None
    except Exception as error:  # noqa: BLE001 - no text, or a login of another kind that failed; it may quote the token
        raise HubError(f"the token cannot be read ({type(error).__name__}); {LOG_IN}") from None
    if not token:
        raise HubError(f"there is no token, and the Hub takes nothing from strangers; {LOG_IN}, or give --token_file")
    if not TOKEN.fullmatch(token):
        raise HubError(f"the token is not one word of plain letters; {LOG_IN}, or give a --token_file that holds one")
    return token


class Hub:
    """The few requests that sharing subjects takes.

    Args:
        token: an access token; by default the one of the user who is logged in, if any.
    """

    def __init__(self, token: str | None = None) -> None:
        self._api = HfApi(token=token, library_name="coeff-diffusion", library_version=__version__)
        self._token = token

    def url(self, repo: str) -> str:
        """The page of a repository."""
        return f"{self._api.endpoint}/{repo}"

    def listing(self, repo: str, revision: str | None = None) -> Listing:
        """The files of a repository and their sizes.

        Raises:
            HubMissingError, HubUnreachableError, HubError: it cannot be looked at.
        """
        with self._asking(repo, revision):
            info = self._api.model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT)
        if info.sha is None or not COMMIT.fullmatch(info.sha):
            raise HubError(f"the answer names no commit of {repo}; is {self._api.endpoint} a Hub?")
        sizes = {file.rfilename: file.size for file in info.siblings or []}
        return Listing(info.sha, sizes, private=bool(info.private))

    def download(self, repo: str, name: str, commit: str, revision: str | None = None) -> Path:
        """A file of a repository, in the Hub's cache; it is a regular file.

        Args:
            commit: of which the listing was.
            revision: asked for again, so that the cache learns which commit it means and serves it without a network.

        Raises:
            HubError: the Hub does not give it, or the repository changed since it was listed.
        """
        with self._asking(repo, revision):
            path = Path(self._api.hf_hub_download(repo, name, revision=revision))
        if commit not in path.parts:
            raise HubError(f"{repo} changed while it was fetched; try again")
        return path.resolve()

    def create(self, repo: str, private: bool) -> None:
        """Make a repository.

        Args:
            private: only its owner sees it; else the owner's default holds, which mostly is public.
        """
        with self._asking(repo), _patience():
            self._api.create_repo(repo, private=private or None, exist_ok=True)

    def commit(self, repo: str, files: Mapping[str, bytes], stale: Collection[str], message: str) -> str:
        """Write files and delete the stale ones in one commit; returns the commit, the last one if nothing changed."""
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, content) for name, content in files.items()),
            *(CommitOperationDelete(name, is_folder=False) for name in sorted(stale)),
        ]
        with self._asking(repo), _patience():
            return self._api.create_commit(repo, operations, commit_message=message).oid

    @contextmanager
    def _asking(self, repo: str, revision: str | None = None) -> Iterator[None]:
        """Show no bars, and speak of errors in one line."""
        bars = not are_progress_bars_disabled()
        if bars:
            disable_progress_bars()
        try:
            yield
        except HubError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever the library raises, it may quote the request and its token
            cause = error.__cause__ if isinstance(error, RuntimeError) else None  # its threads wrap their errors
            raise self._refusal(cause if isinstance(cause, Exception) else error, repo, revision) from None
        finally:
            if bars:
                enable_progress_bars()

    def _refusal(self, error: Exception, repo: str, revision: str | None) -> HubError:
        """What an error of the library means for the user."""
        match error:
            case OfflineModeIsEnabled():
                return HubUnreachableError("the Hub is switched off by HF_HUB_OFFLINE; unset it to reach the network")
            case HFValidationError():
                return HubError(f"{repo!r} is no id of a repository: {self._quoted(str(error))}")
            case LocalTokenNotFoundError():
                return HubError(f"there is no token; {LOG_IN}")
            case GatedRepoError():
                page = self.url(repo)
                return HubError(f"{repo} is gated: ask for access on {page}, and {LOG_IN}")
            case RevisionNotFoundError():
                return HubError(f"{repo} has no revision {revision!r}; its page {self.url(repo)}/commits lists them")
            case RepositoryNotFoundError():
                return HubMissingError(
                    f"there is no repository {repo} that you may see; check the name, and if it is private, {LOG_IN}"
                )
            case DisabledRepoError():
                return HubError(f"{repo} was disabled by the Hub; nothing can be done from here")
            case HfHubHTTPError():
                return self._http_refusal(error, repo)
            case LocalEntryNotFoundError():
                return HubUnreachableError("the Hub cannot be reached; check the network and try again")
            case EntryNotFoundError():
                return HubError(f"{repo} lost a file since it was listed; try again")
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if isinstance(error, TimeoutError) or "TimeoutException" in kinds:
            return HubUnreachableError(f"the Hub did not answer within {TIMEOUT:g} seconds; try again")
        if isinstance(error, HTTP_ERROR | ConnectionError):
            return HubUnreachableError(f"the Hub cannot be reached ({kinds[0]}); check the network and try again")
        if isinstance(error, ValueError) and str(error).startswith("Invalid metadata in README.md"):
            reason = self._quoted(str(error).partition("\n")[2])
            return HubError(f"the Hub does not take the head of README.md: {reason}; mend it, or give a --license")
        if isinstance(error, OSError) and error.strerror and error.filename:
            return HubError(f"{error.strerror}: {error.filename}")
        if isinstance(error, RuntimeError) or kinds[0].startswith("Xet"):  # what its transfer threads and hf_xet raise
            return HubUnreachableError(f"the transfer broke off ({kinds[0]}); try again")
        return HubError(f"the Hub's answer was not understood ({kinds[0]}); is {self._api.endpoint} a Hub?")

    def _http_refusal(self, error: HfHubHTTPError, repo: str) -> HubError:
        """A refusal that is known by its status only."""
        status, owner = error.response.status_code, repo.partition("/")[0]
        if status == 401:
            return HubError("the Hub does not know the token: it is mistyped, expired or revoked; " + LOG_IN)
        if status == 403:
            return HubError(
                f"the token does not allow this; make one that may write to {owner!r} under Settings, Access Tokens, "
                f"and {LOG_IN}"
            )
        if status == 404:
            return HubMissingError(f"the Hub finds no {repo}; check the name")
        if status in (409, 412):
            return HubError(f"{repo} is being changed by someone else; try again")
        if status == 429:
            return HubUnreachableError("the Hub takes no more requests for now; try again in a few minutes")
        if status >= 500:
            return HubUnreachableError(f"the Hub has a problem of its own (status {status}); try again later")
        says = self._quoted(error.server_message or "")
        return HubError(f"the Hub refuses the request for {repo} (status {status})" + (f": {says}" if says else ""))

    def _quoted(self, text: str) -> str:
        """Words of the library or the server, fit for one line, without tokens."""
        secrets = {self._token, self._token or _logged_in()} - {None, ""}
        for secret in secrets:
            text = text.replace(str(secret), "<token>")
        text = re.sub(r"\b(hf|api_org)_\w+|(?i:bearer)\s+\S+", "<token>", text)
        text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
        return text if len(text) <= 300 else f"{text[:300]}..."


@contextmanager
def _patience() -> Iterator[None]:
    """No longer than `TIMEOUT` for an answer: where huggingface_hub writes, it would wait forever."""
    client = get_session()
    before, client.timeout = client.timeout, TIMEOUT
    try:
        yield
    finally:
        client.timeout = before


def _logged_in() -> str | None:
    try:
        return get_token()
    except Exception:  # noqa: BLE001 - only asked to take the token out of a message
        return None
