"""What Forge loads: choose subjects and strengths, and they act in what is drawn."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
from lib_coeff_diffusion.apply import apply_subjects
from lib_coeff_diffusion.files import find_subjects, read_subject
from lib_coeff_diffusion.words import Known, forget, teach
from modules import paths, scripts, shared

from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.errors import CoefficientsError

FOLDER = Path(paths.models_path) / "coeff_subjects"
NONE = "None"
SLOTS = 3
TOLD = ("Subjects", "Subject hashes")  # keys of a picture's text, as coeff-diffusion itself writes them
CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")  # of prompts that Forge has encoded


class CoeffSubjects(scripts.Script):
    """Subjects of `models/coeff_subjects`, up to three at once."""

    sorting_priority = 13
    known: ClassVar[list[Known]] = []  # what Forge's text engines are taught now; of both tabs, which share the engines

    def title(self) -> str:
        return "Coeff Subjects"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        FOLDER.mkdir(parents=True, exist_ok=True)
        controls: list[Any] = []
        with gr.Accordion(self.title(), open=False):
            for number in range(1, SLOTS + 1):
                with gr.Row():
                    choices = [NONE, *find_subjects(FOLDER)]
                    controls.append(gr.Dropdown(choices, value=NONE, label=f"Subject {number}"))
                    controls.append(gr.Slider(-1, 2, value=1, step=0.05, label=f"Strength {number}"))
        self.infotext_fields = [
            (control, lambda told, slot=slot, kind=kind: _pasted(told, slot)[kind])
            for slot in range(SLOTS)
            for kind, control in enumerate(controls[2 * slot : 2 * slot + 2])
        ]
        return controls

    def process(self, p: Any, *values: Any) -> None:
        """Say in the pictures which subjects take part."""
        with _said(p):
            if chosen := _chosen(values):
                strengths = {name: strength for name, (_, strength) in chosen.items()}
                hashes = {name: subject.sha256[:12] for name, (subject, _) in chosen.items()}
                p.extra_generation_params |= dict(zip(TOLD, map(json.dumps, (strengths, hashes)), strict=True))

    def process_batch(self, p: Any, *values: Any, **kwargs: Any) -> None:
        """Before prompts are encoded: triggers become words, so what was encoded before is another text."""
        with _said(p):
            forget(self.known)
            was_taught, chosen = bool(self.known), _chosen(values)
            self.known.clear()
            if was_taught or chosen:
                for cache in filter(None, (getattr(p, name, None) for name in CACHES)):
                    cache[0] = None
            if chosen:
                self.known.extend(teach(p.sd_model, (subject for subject, _ in chosen.values())))

    def process_before_every_sampling(self, p: Any, *values: Any, **kwargs: Any) -> None:
        """Before each pass of sampling, which Forge begins with the UNet that nobody has patched."""
        with _said(p):
            if chosen := _chosen(values):
                prompts = p.hr_prompts if getattr(p, "is_hr_pass", False) else p.prompts
                p.sd_model.forge_objects.unet, notes = apply_subjects(p.sd_model, chosen, prompts, kwargs["c"])
                for note in notes:
                    p.comment(note)


@contextmanager
def _said(p: Any) -> Iterator[None]:
    """What is wrong with a subject is said under the picture and ends the drawing: Forge would go on without it."""
    try:
        yield
    except CoefficientsError as error:
        for key in TOLD:
            p.extra_generation_params.pop(key, None)
        p.comment(f"Coeff Subjects: {error}")
        shared.state.interrupt()


def _chosen(values: tuple[Any, ...]) -> dict[str, tuple[Coefficients, float]]:
    """The subjects of the controls, with their strengths, by name.

    Raises:
        CoefficientsError: one that is not there (any more), damaged, or chosen twice.
    """
    found: dict[str, tuple[Coefficients, float]] = {}
    for name, strength in zip(values[::2], values[1::2], strict=True):
        if name in ("", None, NONE):
            continue
        if name in found:
            raise CoefficientsError(f"{name!r} is chosen twice; take it out of one of the rows")
        found[name] = (read_subject(FOLDER, name), float(strength))
    return found


def _pasted(told: dict[str, Any], slot: int) -> tuple[str, float]:
    """What a picture's text says for a row of controls."""
    try:
        subjects = json.loads(told.get("Subjects", "{}"))
        name, strength = list(subjects.items())[slot]
        return str(name), float(strength)
    except (ValueError, TypeError, AttributeError, IndexError):  # anybody writes these texts
        return NONE, 1.0
