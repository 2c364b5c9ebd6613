"""The ControlNet that a studio draws with: one at a time, loaded where a request asks for it."""

from dataclasses import replace
from typing import Any

from ..families.controlnets import ControlNet, load_controlnet
from ..families.errors import BaseModelError
from ..images.control_picture import ControlPicture
from .request import StudioError


class ControlNets:
    """Keeps the last one in memory until another one is asked for. Not safe to share between threads.

    Args:
        pipe: of the base that it belongs to.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._last: tuple[str, ControlNet] | None = None  # by what it was asked for as

    def get(self, control: ControlPicture) -> ControlNet:
        """The ControlNet of a control picture: by its folder, file or Hub id, or by the name and digits it goes by.

        Raises:
            StudioError: there is none, it is damaged or made for another kind of base, or another one than was meant.
        """
        if not self._is_last(control):
            self.forget()  # two of them may be more than the memory holds
            try:
                self._last = control.net, load_controlnet(control.net, self.pipe)
            except BaseModelError as error:
                raise StudioError(str(error)) from error
        assert self._last is not None
        _, found = self._last
        if control.net_digits not in ("", found.digits):
            raise StudioError(
                f"the ControlNet {control.net!r} is another one ({found.digits}) than was asked for "
                f"({control.net_digits}); name its folder, file or Hub id"
            )
        return found

    def named(self, control: ControlPicture) -> ControlPicture:
        """The control picture with its ControlNet by the name and the digits that pictures record. Raises as `get`."""
        found = self.get(control)
        return replace(control, net=found.name, net_digits=found.digits)

    def forget(self) -> None:
        """Give its memory back."""
        self._last = None

    def _is_last(self, control: ControlPicture) -> bool:
        """A name alone is not enough: another folder may be called alike."""
        if self._last is None:
            return False
        source, found = self._last
        return control.net == source or (control.net, control.net_digits) == (found.name, found.digits)
