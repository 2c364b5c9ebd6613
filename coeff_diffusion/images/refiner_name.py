"""Which refiner finishes a drawing, as people name it and as pictures record it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RefinerName:
    """What it is called.

    Attributes:
        name: its folder, file or Hub id, and in a drawing the short name that it goes by.
        digits: 12 hex digits that tell its weights from any other's; empty before it is loaded.
    """

    name: str
    digits: str = ""

    def __str__(self) -> str:
        return f"the refiner {self.name!r}" + (f" ({self.digits})" if self.digits else "")
