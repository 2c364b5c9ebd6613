"""The control of a setting, made from what is known of it where its field is (`images/drawing_settings.py`)."""

from typing import Any

import gradio as gr

from ..service import StudioService, limits_of
from ..subject.setting import Setting


def control_of(setting: Setting, service: StudioService, tab: str, **changes: Any) -> Any:
    """A text, a choice, a slider, or a number where there is no end to it.

    Args:
        tab: what its `elem_id` begins with.
        changes: what is else on this tab.
    """
    studio, reach = service.studio, limits_of(service.studio, setting)
    samplers = studio.schedulers
    default = setting.default if setting.usual is None else setting.usual
    own = {**studio.usual, "scheduler": samplers[0]}.get(setting.name, default)
    options: dict[str, Any] = {
        "value": shown(setting, own),
        "label": setting.label,
        "info": setting.hint.format(own),
        "elem_id": f"{tab}-{setting.id}",
        "step": studio.multiple if setting.name in ("width", "height") else setting.step,
        "precision": 0 if setting.kind is int else None,
        **changes,
    }
    if setting.kind is str:
        choices = samplers if setting.name == "scheduler" else setting.choices
        del options["step"], options["precision"]
        return gr.Dropdown([*choices], **options) if choices else gr.Textbox(**options)
    if reach is None:
        return gr.Number(**options | {"value": own or 0})  # what is beyond its ends is said by its name, as of scripts
    low, high = (shown(setting, end) for end in reach)
    return gr.Slider(low, high, **options)


def shown(setting: Setting, value: Any) -> Any:
    """What the control shows for a value."""
    return round(100 * value, 6) if setting.percent and value is not None else value


def value_of(setting: Setting, shown: Any) -> Any:
    """The value for what the control shows."""
    return shown / 100 if setting.percent else shown
