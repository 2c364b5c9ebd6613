"""What `accelerate launch`, or the file of `accelerate config`, says of a run that takes its own settings alone."""

import os

from .settings import TrainSettings

SETTINGS = ("mixed_precision", "gradient_accumulation_steps")
OTHERS = {"DYNAMO_BACKEND": "torch.compile", "USE_FSDP": "FSDP", "USE_DEEPSPEED": "DeepSpeed"}
UNTOLD = ("", "no", "1", "false")  # accelerate sets its variables also where nobody asked for anything


def unread(config: TrainSettings) -> list[str]:
    """A sentence for each thing that accelerate was told and that the settings do not say."""
    given = {name: _told(name) for name in SETTINGS}
    notes = [
        f"note: accelerate was told --{name} {value}, which is not read from there; give --{name} {value} behind the "
        f"name of the script (it is {getattr(config, name)})"
        for name, value in given.items()
        if value not in (*UNTOLD, str(getattr(config, name)))
    ]
    used = [what for variable, what in OTHERS.items() if _told(variable) not in UNTOLD]
    return [*notes, *(f"note: accelerate was told to use {what}, which trainings here do not" for what in used)]


def _told(name: str) -> str:
    return os.environ.get(f"ACCELERATE_{name.upper()}", "").lower()
