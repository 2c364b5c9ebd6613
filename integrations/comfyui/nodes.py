"""The nodes, as ComfyUI shows them."""

import hashlib
import os
from pathlib import Path
from typing import Any, ClassVar

import folder_paths

from coeff_diffusion.sources.image_card import choose, extract, is_card
from coeff_diffusion.subject.blend import blend
from coeff_diffusion.subject.coefficients import Coefficients
from coeff_diffusion.subject.layer_strengths import LayerStrengths
from coeff_diffusion.subject.printable import printable

from .apply import apply_subject

CATEGORY = "coeff-diffusion"
SUBJECT = "COEFF_SUBJECT"
FOLDER = "coeff_subjects"
ENDINGS = {".safetensors", ".png"}
OWN_GATE = "as the subject says"

Inputs = dict[str, dict[str, Any]]


def register_folder() -> None:
    """Make `models/coeff_subjects` known, beside what the user's extra_model_paths.yaml names."""
    paths, _ = folder_paths.folder_names_and_paths.get(FOLDER, ([], set()))
    own = os.path.join(folder_paths.models_dir, FOLDER)  # noqa: PTH118  ComfyUI compares texts
    folder_paths.folder_names_and_paths[FOLDER] = ([*paths, *([] if own in paths else [own])], ENDINGS)


def number(default: float, low: float, high: float, tooltip: str, step: float = 0.05) -> tuple[str, dict[str, Any]]:
    return "FLOAT", {"default": default, "min": low, "max": high, "step": step, "tooltip": tooltip}


def find_files() -> list[str]:
    """What can be chosen; of pictures those that are cards, and no preview of the file beside it."""
    found = folder_paths.get_filename_list(FOLDER)
    paths = {name: folder_paths.get_full_path(FOLDER, name) for name in found if name.lower().endswith(".png")}
    return [name for name in found if name not in paths or (paths[name] and is_card(Path(paths[name])))]


class LoadCoeffSubject:
    """Reads a subject's file, or the subject that a card carries."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES: ClassVar = (SUBJECT,)
    RETURN_NAMES: ClassVar = ("subject",)
    DESCRIPTION = "Loads a subject of coeff-diffusion from models/coeff_subjects: a file or a card (PNG)."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {
            "required": {"file": (find_files(),)},
            "optional": {
                "name": ("STRING", {"default": "", "tooltip": "Which subject, where a card carries several."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, file: str, name: str = "") -> str:  # noqa: N802
        return hashlib.sha256(Path(folder_paths.get_full_path_or_raise(FOLDER, file)).read_bytes()).hexdigest()

    def load(self, file: str, name: str = "") -> tuple[Coefficients]:
        """
        Raises:
            CoefficientsError: damaged, no subject, or several and `name` does not say which.
        """
        path = Path(folder_paths.get_full_path_or_raise(FOLDER, file))
        found = extract(path) if path.suffix.lower() == ".png" else [Coefficients.read(path)]
        return (choose(found, name or None, path),)


class ApplyCoeffSubject:
    """Lets a subject act in a model."""

    CATEGORY, FUNCTION = CATEGORY, "apply"
    RETURN_TYPES: ClassVar = ("MODEL", "CLIP")
    DESCRIPTION = "Lets a subject act. Encode the prompt with the CLIP that comes out, and write the trigger into it."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        gates = [OWN_GATE, "trigger", "always"]
        tooltip = "On which prompts the matrices act: on those with the trigger, or on all."
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "subject": (SUBJECT,),
                "strength": number(
                    1.0, -4.0, 4.0, "0 leaves the learned word alone, 1 is the subject as it was trained."
                ),
                "gate": (gates, {"default": OWN_GATE, "tooltip": tooltip}),
                "self_attention": number(1.0, 0.0, 4.0, "Factor in layers where the picture looks at itself."),
                "cross_attention": number(1.0, 0.0, 4.0, "Factor in layers where it looks at the prompt."),
                "begin": number(0.0, 0.0, 1.0, "The part of sampling at which the subject begins to act.", 0.01),
                "end": number(1.0, 0.0, 1.0, "The part of sampling at which it ends.", 0.01),
            }
        }

    def apply(
        self,
        model: Any,
        clip: Any,
        subject: Coefficients,
        strength: float,
        gate: str,
        self_attention: float,
        cross_attention: float,
        begin: float,
        end: float,
    ) -> tuple[Any, Any]:
        """
        Raises:
            CoefficientsError: see `apply_subject`.
        """
        layers = LayerStrengths(self_attention=self_attention, cross_attention=cross_attention)
        chosen: Any = None if gate == OWN_GATE else gate
        return apply_subject(model, clip, subject, strength, chosen, layers, begin, end)


class BlendCoeffSubjects:
    """The weighted sum of two subjects of one base."""

    CATEGORY, FUNCTION = CATEGORY, "blend"
    RETURN_TYPES: ClassVar = (SUBJECT,)
    RETURN_NAMES: ClassVar = ("subject",)
    DESCRIPTION = "Makes one subject of two. To have both in one picture, apply them one after the other instead."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {
            "required": {
                "first": (SUBJECT,),
                "second": (SUBJECT,),
                "first_weight": number(0.5, -4.0, 4.0, "How much of the first."),
                "second_weight": number(0.5, -4.0, 4.0, "How much of the second."),
            }
        }

    def blend(
        self, first: Coefficients, second: Coefficients, first_weight: float, second_weight: float
    ) -> tuple[Coefficients]:
        """
        Raises:
            CoefficientsError: of different bases, or with learned tokens of different triggers.
        """
        return (blend([(first, first_weight), (second, second_weight)]),)


class CoeffSubjectInfo:
    """What a subject says of itself."""

    CATEGORY, FUNCTION, OUTPUT_NODE = CATEGORY, "describe", True
    RETURN_TYPES: ClassVar = ("STRING", "STRING")
    RETURN_NAMES: ClassVar = ("text", "trigger")
    DESCRIPTION = "What a subject says of itself: its trigger, its base, what it holds."

    @classmethod
    def INPUT_TYPES(cls) -> Inputs:  # noqa: N802
        return {"required": {"subject": (SUBJECT,)}}

    def describe(self, subject: Coefficients) -> dict[str, Any]:
        text = describe(subject)
        return {"ui": {"text": [text]}, "result": (text, subject.info.trigger)}


def describe(subject: Coefficients) -> str:
    """A line for each thing that is known of a subject."""
    info = subject.info
    learned = [
        f"{len(subject)} layers",
        *(f"{len(token)} vectors for {owner}" for owner, token in subject.tokens.items()),
    ]
    if subject.stage_tokens:
        learned.append(f"stage tokens for {', '.join(subject.stage_tokens)}")
    lines = {
        "name": info.name,
        "trigger": info.trigger,
        "gate": info.gate if info.trigger else "always",
        "class word": info.class_word,
        "base": " ".join(filter(None, (info.base_model, info.base_revision))),
        "family": info.base_architecture,
        "resolution": info.resolution,
        "learned": "; ".join(learned),
        "steps": info.train_steps,
        "license": info.license,
        "created": info.created,
        "hash": subject.sha256[:12],
    }
    return "\n".join(f"{name}: {printable(str(value))}" for name, value in lines.items() if value not in ("", None))


register_folder()

NODE_CLASS_MAPPINGS = {
    one.__name__: one for one in (LoadCoeffSubject, ApplyCoeffSubject, BlendCoeffSubjects, CoeffSubjectInfo)
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadCoeffSubject": "Load Coeff Subject",
    "ApplyCoeffSubject": "Apply Coeff Subject",
    "BlendCoeffSubjects": "Blend Coeff Subjects",
    "CoeffSubjectInfo": "Coeff Subject Info",
}
