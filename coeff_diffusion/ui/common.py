"""What the tabs share: how refusals are said, how pictures are shown, and the settings of quiet events."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..coefficients import CoefficientsError
from ..config import ConfigError
from ..drawing import Picture, StudioError
from ..images import DatasetError
from ..pictures import PictureError
from ..progress import TrainingError
from ..schedulers import SchedulerError

# Their messages are made for users.
REFUSALS = (
    StudioError, SchedulerError, CoefficientsError, PictureError, ConfigError, DatasetError, TrainingError, OSError
)  # fmt: skip
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""For events that only keep the page true: no name for scripts, no spinner."""


def told(call: Any, *arguments: Any, **options: Any) -> Any:
    """Call the service; what it refuses, the page says in one sentence where the user looks."""
    try:
        return call(*arguments, **options)
    except REFUSALS as error:
        raise refusal(error) from error


def refusal(error: Exception) -> gr.Error:
    """An error of the service as the page shows it: its text, as text."""
    return gr.Error(str(error), print_exception=False)


def shown(pictures: Sequence[Picture]) -> list[tuple[Any, str]]:
    """Pictures with their seeds; the parameters travel in `info`, which gradio writes into the PNG it serves."""
    for picture in pictures:
        picture.image.info["parameters"] = picture.parameters
    return [(picture.image, f"seed {picture.seed}") for picture in pictures]
