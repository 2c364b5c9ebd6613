"""What a studio draws with beside its base: a ControlNet, a refiner, loaded where a request asks for them."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ..families.errors import BaseModelError
from .request import StudioError


class Loaded(Protocol):
    """A network with the name and the digits that pictures record."""

    @property
    def name(self) -> str: ...

    @property
    def digits(self) -> str: ...


Network = TypeVar("Network", bound=Loaded)


class Kept(Generic[Network]):
    """Keeps the last one of a kind in memory until another one is asked for. Not safe to share between threads.

    Args:
        called: what sentences call the kind.
        load: by a folder, file or Hub id; raises BaseModelError.
    """

    def __init__(self, called: str, load: Callable[[str], Network]) -> None:
        self.called, self.load = called, load
        self._last: tuple[str, Network] | None = None  # by what it was asked for as

    def get(self, name: str, digits: str = "") -> Network:
        """One by its folder, file or Hub id, or by the name and digits it goes by.

        Raises:
            StudioError: there is none, it is damaged or made for another kind of base, or another one than was meant.
        """
        if not self._is_last(name, digits):
            self.forget()  # two of them may be more than the memory holds
            try:
                self._last = name, self.load(name)
            except BaseModelError as error:
                raise StudioError(str(error)) from error
        assert self._last is not None
        _, found = self._last
        if digits not in ("", found.digits):
            raise StudioError(
                f"the {self.called} {name!r} is another one ({found.digits}) than was asked for ({digits}); name its "
                "folder, file or Hub id"
            )
        return found

    def forget(self) -> None:
        """Give its memory back."""
        self._last = None

    def _is_last(self, name: str, digits: str) -> bool:
        """A name alone is not enough: another folder may be called alike."""
        if self._last is None:
            return False
        source, found = self._last
        return name == source or (name, digits) == (found.name, found.digits)
