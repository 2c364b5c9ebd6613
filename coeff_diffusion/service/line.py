"""What waits in line: those who asked for it take turns, and what one of them asked for keeps its order."""

from collections.abc import Iterator
from itertools import zip_longest


class Line:
    """The numbers of jobs that wait, by who asked for them.

    Owners take turns, so that nobody waits for all that another one asked for. It has no lock of its own: whoever
    keeps it has one.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[int]] = {}  # by owner; whose turn is next stands first, and nobody without jobs

    def __iter__(self) -> Iterator[int]:
        """All of them in the order in which they begin, if nothing more is asked for."""
        turns = zip_longest(*self._waiting.values())
        return (number for turn in turns for number in turn if number is not None)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def of(self, owner: str) -> list[int]:
        """What one of them waits for, the next first."""
        return [*self._waiting.get(owner, ())]

    def add(self, owner: str, number: int) -> None:
        """Put a job at the end of what its owner waits for."""
        self._waiting.setdefault(owner, []).append(number)

    def take(self) -> int | None:
        """Take out the one whose turn it is; all others have theirs before its owner has another."""
        if not self._waiting:
            return None
        owner = next(iter(self._waiting))
        number, *others = self._waiting.pop(owner)
        if others:
            self._waiting[owner] = others
        return number

    def remove(self, owner: str, number: int) -> bool:
        """Take one out before its turn; whether it was there."""
        if number not in self._waiting.get(owner, ()):
            return False
        self._waiting[owner].remove(number)
        if not self._waiting[owner]:
            del self._waiting[owner]
        return True

    def sooner(self, owner: str, number: int) -> None:
        """Let one change places with the one that its owner asked for before it; the first one stays the first."""
        waiting = self._waiting.get(owner, [])
        place = waiting.index(number) if number in waiting else 0
        if place:
            waiting[place - 1], waiting[place] = number, waiting[place - 1]
