"""What the tabs share: how refusals are said, how pictures are shown, and the settings of quiet events."""

import html
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import gradio as gr

from ..families.errors import BaseModelError
from ..images.generation_info import PictureError
from ..images.photo import DatasetError
from ..inference.request import Picture, StudioError
from ..inference.samplers import SchedulerError
from ..service import Glimpse
from ..subject.errors import CoefficientsError
from ..training.config import ConfigError
from ..training.reports import TrainingError

Update = TypeVar("Update")
Result = TypeVar("Result")
# Their messages are made for users.
REFUSALS = (
    BaseModelError, StudioError, SchedulerError, CoefficientsError, PictureError, ConfigError, DatasetError,
    TrainingError, OSError,
)  # fmt: skip
# One name for all of them (gradio counts on): named after their functions they would take the names scripts call by.
QUIET: dict[str, Any] = {"api_visibility": "private", "api_name": "page", "show_progress": "hidden"}
"""For events that only keep the page true: no name for scripts, no spinner."""


def or_refusal(call: Any, *arguments: Any, **options: Any) -> Any:
    """Call the service; what it refuses, the page says in one sentence where the user looks."""
    try:
        return call(*arguments, **options)
    except REFUSALS as error:
        raise refusal(error) from error


def refusal(error: Exception) -> gr.Error:
    """An error of the service as the page shows it: its text, as text (gradio would take it for markup)."""
    return gr.Error(html.escape(str(error), quote=False), print_exception=False)


def status_line(*sentences: str, refused: bool = False) -> str:
    """Sentences as the value of a `gr.HTML`, one line each: as text, whatever stands in them.

    A screen reader tells of them as they change, and of a refusal at once.
    """
    role = "alert" if refused else "status"
    return f'<div role="{role}">{"".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)}</div>'


def with_status(
    handler: Callable[..., dict[Any, Any]], status: gr.HTML, *emptied: Any
) -> Callable[..., Iterator[dict[Any, Any]]]:
    """An event's handler whose refusals also stand in `status`, which has to be among the event's outputs.

    Args:
        emptied: outputs, too, that hold nothing after a refusal: a field for one file takes no other before.
    """

    def speaking(*arguments: Any) -> Iterator[dict[Any, Any]]:
        try:
            yield handler(*arguments)
        except REFUSALS as error:
            yield {status: status_line(str(error), refused=True), **dict.fromkeys(emptied)}
            raise refusal(error) from error

    return speaking


def follow(run: Generator[Glimpse, None, Result], show: Callable[[Glimpse], Update]) -> Generator[Update, None, Result]:
    """Hand on what `show` makes of every glimpse of a job; the generator's return value is the job's.

    However it ends, the job ends with it.
    """
    try:
        while True:
            try:
                glimpse = next(run)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield show(glimpse)
    finally:
        run.close()


def shown(pictures: Sequence[Picture]) -> list[tuple[Any, str]]:
    """Pictures with their seeds; the parameters travel in `info`, which gradio writes into the PNG it serves."""
    for picture in pictures:
        picture.image.info["parameters"] = picture.parameters
    return [(picture.image, f"seed {picture.seed}") for picture in pictures]
