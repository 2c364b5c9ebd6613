"""The base that is drawn with, and the way to another one while the page stays open."""

import gc
import queue
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import torch

from ..families.errors import BaseModelError, one_line
from ..families.folders import download
from ..families.heap import return_freed
from ..families.load import EMBEDDED, best_device, kind_of_base, load_base, short_name
from ..families.memory import bytes_in_memory, free_memory
from ..families.registry import denoiser_of
from ..inference.request import StudioError
from ..inference.studio import Studio
from ..subject.errors import cut
from ..subject.hub_id import HUB_ID
from ..subject.user_file import user_path
from .base_history import MAX_NAME, OWN, BaseHistory, Parts
from .studio_service import StudioService

Tell = Callable[[str], None]
SHARED = ("dtype", "quantization", "device")
GONE = "the base was changed to another one; load the page again"


class Bases:
    """Holds the service of the base that is drawn with. Another base comes with a service of its own.

    It is loaded beside the one that is there, which goes when the other one is in its place, and stays if that fails.
    On a GPU the one that is there waits in the computer's memory meanwhile.

    Args:
        service: of the base that the page is opened with.
        name: what that base was loaded by.
        options: what else it was loaded with (see `load_base`); of these, others are loaded with `SHARED` alone, and
            with configs and an autoencoder of their own where they had those when the page was opened with them.
        anyone: whether a base that was never used here may be named: a folder or a file of this computer, or an id on
            the Hub, of which gigabytes would come down. Not where others can reach the page.

    Attributes:
        current: the service of the base that is drawn with now.
        show: called when there is another one, in a thread of no browser's.
    """

    def __init__(
        self, service: StudioService, name: str = "", options: Mapping[str, Any] | None = None, anyone: bool = True
    ) -> None:
        self.current, self.anyone = service, anyone
        self.show: Callable[[], None] = lambda: None
        self._options = dict(options or {})
        revision = self._options.get("revision")
        first = _absolute(name or str(service.studio.pipe.name_or_path))
        self.name = self._first = f"{first}@{revision}" if revision else first
        self._history = BaseHistory(service.library.folder)
        self._loading = threading.Lock()

    # --- looking ------------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """What can be chosen from: the current base, those that were used here, that of the start, the embedded one."""
        return list(dict.fromkeys([self.name, *self._used(), self._first, EMBEDDED]))

    def _used(self) -> Mapping[str, Parts]:
        """Bases that were used here, each with what it was loaded with."""
        with suppress(StudioError, OSError):  # see `remark`
            return self._history.read()
        return {}

    def _parts(self, name: str) -> Parts:
        """What else a base was loaded with when it was used last: the page's own flags for the one of the start."""
        if name != self._first:
            return self._used().get(name, {})
        given = {part: self._options.get(part) for part in OWN}
        return {part: _absolute(value) for part, value in given.items() if isinstance(value, str)}

    @property
    def remark(self) -> str:
        """Why the list of those that were used is not among `names`; empty where it is."""
        try:
            self._history.read()
        except (StudioError, OSError) as error:
            return str(error)
        return ""

    def remember(self) -> None:
        """Put the current base into that list, which stays as it is where it cannot be read."""
        if self.name != EMBEDDED and not self.remark:
            self._history.add(self.name, self._parts(self.name))

    def choices(self) -> list[tuple[str, str]]:
        """Each name as it is shown and as `switch` takes it: where others reach the page, no path is among them."""
        names = self.names()
        if self.anyone:
            return [(name, name) for name in names]
        return [(label, label) for label in _labels(names)]

    def shown(self) -> str:
        """The current one of `choices`, as it is given to `switch`."""
        names = self.names()
        return self.name if self.anyone else _labels(names)[names.index(self.name)]

    def about(self) -> str:
        """What is drawn with, in one sentence."""
        studio = self.current.studio
        denoiser = denoiser_of(studio.pipe)
        width, height = studio.size
        precision = str(denoiser.dtype).removeprefix("torch.")
        return f"{studio.family.title}, {width} x {height} pixels, {precision} on {_called(denoiser.device)}"

    def look(self, name: str) -> str:
        """What is known of a base before it is loaded, in one sentence: what memory it takes, and what there is.

        Raises:
            StudioError, BaseModelError: it is no base, or not one of those that can be chosen.
        """
        found = self._meant(name)
        repo, revision = _split(found)
        if found == self.name:
            return f"{short_name(repo)} is the base that is drawn with: {self.about()}."
        size = bytes_in_memory(repo, self._dtype, revision, self._options.get("quantization", "no"))
        where = _called(self._device) if self._device.type == "cuda" else "this computer"
        free = f"{_gigabytes(free_memory(self._device))} are free on {where}"
        if size is None:
            return f"{found} is on the Hub and not on this computer yet; {free}."
        return f"{short_name(repo)} takes {_gigabytes(size)} of memory for its weights; {free}."

    # --- changing -----------------------------------------------------------------------------------------------------

    def switch(self, name: str, tell: Tell = lambda sentence: None) -> StudioService:
        """Load a base and draw with it from now on.

        Args:
            tell: called with what is being done, a sentence each.

        Raises:
            StudioError: something is drawn or trained, another base is being loaded, or the name may not be given.
            BaseModelError: it cannot be loaded, or memory does not suffice. The base is the old one then.
        """
        wanted = self._meant(name)
        label = short_name(_split(wanted)[0])
        if wanted == self.name:
            raise StudioError(f"{label} is the base that is drawn with already")
        if not self._loading.acquire(blocking=False):
            raise StudioError("another base is being loaded; wait until it is there")
        try:
            old = self.current
            with old.resting(f"the base is being changed to {label}; wait until it is there"):
                before = self.current, self.name
                try:
                    self.current, self.name = self._made(wanted, label, tell), wanted
                    self.show()
                except BaseException:
                    self.current, self.name = before
                    old.studio.pipe.to(self._device)  # it may have made room
                    raise
                old.studio.let_go(GONE)
                gc.collect()  # networks are full of circles
                return_freed()
            old.close()
            self.remember()
            return self.current
        except BaseModelError as error:
            if self.anyone:
                raise
            said = str(error).replace(_split(wanted)[0], label)
            for path in self._parts(wanted).values():
                said = said.replace(path, short_name(path))
            raise BaseModelError(said) from error
        finally:
            self._loading.release()

    def watch(self, name: str) -> Generator[str, None, StudioService]:
        """`switch` in a thread: yields what is being done. The base is changed also if nobody watches any more."""
        news, outcome = queue.SimpleQueue[str | None](), Future[StudioService]()

        def target() -> None:
            try:
                outcome.set_result(self.switch(name, news.put))
            except BaseException as error:  # noqa: BLE001 - it is raised again where somebody waits for it
                outcome.set_exception(error)
            finally:
                news.put(None)

        threading.Thread(target=target, name="base", daemon=True).start()
        while (sentence := news.get()) is not None:
            yield sentence
        return outcome.result()

    def _made(self, name: str, label: str, tell: Tell) -> StudioService:
        """Everything around a base that is loaded for it."""
        repo, revision = _split(name)
        own = {"revision": revision, **self._parts(name), **self._shared}
        options = self._options if name == self._first else own
        if kind_of_base(repo) == "hub":
            tell(f"Asking the Hub for {label} ...")
            download(
                repo,
                options.get("revision"),
                lambda there, total: tell(
                    f"Downloading {label}: {_gigabytes(there)} of {_gigabytes(max(there, total))}"
                ),
            )
        self._check_memory(repo, label, options.get("revision"))
        tell(f"Loading {label} ...")
        try:
            pipe = load_base(repo, **{**options, "device": None})
        except (MemoryError, RuntimeError) as error:
            raise BaseModelError(f"{label} cannot be loaded: {one_line(error)}") from error
        old = self.current
        studio = Studio(self._placed(pipe, label))
        new = StudioService(studio, old.library, old.output_dir, old.training_queue.jobs)
        new.import_export.folders = new.drawings.folders = old.import_export.folders
        new.drawings.templates, new.caption_writer = old.drawings.templates, old.caption_writer
        return new

    def _placed(self, pipe: Any, label: str) -> Any:
        """The pipeline where it draws. On a GPU the one that is there makes room."""
        if self._device.type == "cpu":
            return pipe
        self.current.studio.forget_networks()
        self.current.studio.pipe.to("cpu")
        try:
            return pipe.to(self._device)
        except RuntimeError as error:  # memory does not suffice, in most cases
            pipe.to("cpu")  # makes room for the one that comes back
            raise BaseModelError(f"{label} does not fit on {_called(self._device)}: {one_line(error)}") from error

    def _check_memory(self, name: str, label: str, revision: str | None) -> None:
        """Weights are read into the computer's memory first, whatever draws."""
        size = bytes_in_memory(name, self._dtype, revision) or 0
        free = free_memory(torch.device("cpu"))
        if size > free:
            raise BaseModelError(
                f"{label} takes {_gigabytes(size)} of memory for its weights, and {_gigabytes(free)} are free beside "
                "the base that is loaded; close other programs, or end the page and open it with --base"
            )

    @property
    def _shared(self) -> dict[str, Any]:
        return {name: self._options[name] for name in SHARED if name in self._options}

    @property
    def _device(self) -> torch.device:
        asked = str(self._options.get("device") or "cpu")
        return best_device() if asked == "auto" else torch.device(asked)

    @property
    def _dtype(self) -> torch.dtype:
        dtype = self._options.get("dtype", torch.float32)
        found: torch.dtype = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype)
        return found

    def _meant(self, name: str) -> str:
        """The base's full name.

        Raises:
            StudioError: nothing was given, or it is not one of those that can be chosen.
            BaseModelError: it is no base.
        """
        name = name.strip()
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise StudioError("give a base: embedded, a folder, a .safetensors file, or an id on the Hub")
        if self.anyone:
            kind_of_base(_split(name)[0])
            return _absolute(name)
        names = self.names()
        labels = _labels(names)
        if name not in labels:
            raise StudioError(
                f"{cut(name)!r} is not one of the bases that can be chosen here: {', '.join(labels)}; where others can "
                "reach the page, only those that were used on this computer can be"
            )
        return names[labels.index(name)]


def _labels(names: list[str]) -> list[str]:
    """Names without paths, each of its own."""
    labels: list[str] = []
    for name in names:
        label = short_name(_split(name)[0])
        labels.append(label if label not in labels else f"{label} ({len(labels) + 1})")
    return labels


def _split(name: str) -> tuple[str, str | None]:
    """`"user/base@v1"` -> `("user/base", "v1")`; what lies on this computer has no revision."""
    found = HUB_ID.fullmatch(name)
    return (name, None) if found is None or user_path(name).exists() else (found[1], found[2])


def _absolute(name: str) -> str:
    """The name that still means the same when the page is opened from elsewhere."""
    path = user_path(name)
    return str(path.resolve()) if name != EMBEDDED and path.exists() else name


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{max(1, round(size / 1e6))} MB"


def _called(device: torch.device) -> str:
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    return "the GPU" if device.type == "mps" else "the CPU"
