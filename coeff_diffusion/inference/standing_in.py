"""What takes its place in a pipeline: copied with the whole pipeline, or refused; never half."""

import copy
import functools
from collections.abc import Callable
from typing import Any, NoReturn, Self

from ..subject.errors import CoefficientsError


class StandIn:
    """In place of a pipeline's method, with its signature. A copy of the pipeline gets its own."""

    def __init__(self, original: Any, run: Callable[..., Any]) -> None:
        functools.update_wrapper(self, original)
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


class OfPipelines:
    """What belongs to pipelines with subjects, and hangs on their networks as well.

    `copy.deepcopy` of a pipeline copies it. Without its pipeline nobody could unload it, so a network is not copied
    alone; and it is not pickled, as what it knows of running hooks means nothing elsewhere.
    """

    def pipelines(self) -> list[Any]:
        """All that draw with it."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        left_out = [type(pipe).__name__ for pipe in self.pipelines() if id(pipe) not in memo]
        if left_out:
            raise CoefficientsError(
                f"a network with coefficients loaded cannot be copied without the {' and the '.join(left_out)} that "
                "draws with it; copy the pipeline, or unload_coefficients(pipe) first"
            )
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise CoefficientsError(
            "what has coefficients loaded cannot be pickled; unload_coefficients(pipe) first and load them again "
            "afterwards (save_pretrained and state_dict leave them out by themselves)"
        )
