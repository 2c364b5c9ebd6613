"""What is measured of a trained subject. All methods get the same prompts, pictures, noise and timesteps.

Shapes: N pictures; C, h, w channels and size of the latents; F features.
"""

import runpy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers import StableDiffusionPipeline
from features import FeatureExtractor
from fidelity_plan import Run
from fidelity_settings import NOTHING, OURS, ROOT, Settings
from PIL import Image

from coeff_diffusion.families.process import prediction_target, training_schedule
from coeff_diffusion.images.photo import read_image
from coeff_diffusion.inference.pipeline_subjects import Gate, set_coefficients
from coeff_diffusion.inference.request import DrawRequest
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.training.latents import encode_pictures
from coeff_diffusion.training.losses import squared_errors
from coeff_diffusion.training.model import training_resolution
from coeff_diffusion.training.picture_folder import TrainingPicture, find_pictures
from coeff_diffusion.training.views import PictureViews

_WORDS = runpy.run_path(str(ROOT / "tools" / "base" / "concepts.py"))
COLOURS: dict[str, tuple[int, int, int]] = _WORDS["COLOURS"]
SCENES: tuple[str, ...] = _WORDS["SCENES"]

# Other concepts, none of a subject's class. Drift is measured on the base's own pictures of them, not on the other
# subjects' pictures: no base has seen those, so that learning the style all subjects share would count as a gain and
# hide what is lost. On its own pictures a base has nothing left to gain.
UNRELATED = (
    "a car on a blue background",
    "a castle on grass",
    "a rose on a pink background",
    "a hamburger on a wooden table",
    "a sailboat on a beach",
    "a violin on a white background",
    "a horse in a forest",
    "an umbrella in the snow",
)
TIMESTEPS = 10  # of each picture, in the middles of equal parts of the noise schedule
BATCH = 8
DRAWN_AT_ONCE = 8  # the same ones in every run: other batches round in another order


def with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def grounds() -> list[str]:
    """What stands behind the subject in the 20 drawn pictures: every colour once, then scenes."""
    return [*(f"on {with_article(colour)} background" for colour in COLOURS), *SCENES[: 20 - len(COLOURS)]]


@dataclass(frozen=True)
class SubjectPictures:
    """A subject as the benchmark sees it."""

    class_word: str
    trigger: str
    unseen: list[Path]

    @classmethod
    def find(cls, settings: Settings, name: str) -> "SubjectPictures":
        text = (Path(settings.subjects_dir) / name / "subject.yaml").read_text(encoding="utf-8")
        about = yaml.safe_load(text)
        return cls(about["class_word"], about["trigger"], find_pictures(Path(settings.unseen_dir) / name).paths)

    def words(self, method: str) -> str:
        """What calls the subject up. The base alone does not know its trigger, only the class word."""
        return with_article(self.class_word if method == NOTHING else self.trigger)


class Measurement:
    """Measures one run.

    Args:
        pipe: the base with what was learned, on its device.
        name: the subject's name where it is one of the library's.
    """

    def __init__(self, run: Run, settings: Settings, pipe: StableDiffusionPipeline, name: str | None) -> None:
        self.run, self.settings, self.pipe, self.name = run, settings, pipe, name
        self.subject = SubjectPictures.find(settings, run.subject)
        self.studio = Studio(pipe)
        self.schedule = training_schedule(pipe.scheduler.config)

    def figures(self) -> dict[str, Any]:
        """All figures of the run; those of the search are only the first."""
        words = self.subject.words(self.run.method)
        figures: dict[str, Any] = {"subject_loss": self.loss(self.subject.unseen, [words] * len(self.subject.unseen))}
        if not self.run.drawn:
            return figures
        pictures = self.draw([f"{words} {ground}" for ground in grounds()], 0)
        self.keep(pictures, "subject")
        figures |= self.likeness(pictures)
        figures["colours"] = float(np.mean([nearest_colour(p) == c for p, c in zip(pictures, COLOURS, strict=False)]))
        figures |= self.drift(None)
        if self.run.method in OURS and self.run.method != "token":
            # The gate leaves unrelated prompts to the base. What is learned is only compared without it.
            figures["always"] = self.drift("always")
        return figures

    # --- losses -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def loss(self, paths: list[Path], prompts: Sequence[str], gate: Gate | None = None) -> float:
        """Mean denoising loss of pictures, each at `TIMESTEPS` timesteps, with the same noise in every run."""
        pipe, count = self.pipe, self.schedule.config.num_train_timesteps
        if self.name is not None:
            set_coefficients(pipe, {self.name: 1.0}, gate=gate)
        pictures = [TrainingPicture(path) for path in paths]
        views = PictureViews(pictures, training_resolution(None, pipe), True, False, 1, 0)
        clean = (
            encode_pictures(pipe.vae, views).largest()[0].first_views().repeat_interleave(TIMESTEPS, 0)
        )  # [N, C, h, w]
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
        steps = ((torch.arange(TIMESTEPS) + 0.5) / TIMESTEPS * count).long().repeat(len(paths)).to(clean.device)  # [N]
        texts = [prompt for prompt in prompts for _ in range(TIMESTEPS)]
        errors = []
        for start in range(0, len(clean), BATCH):
            part = slice(start, start + BATCH)
            noised = self.schedule.add_noise(clean[part], noise[part], steps[part])
            embeddings = pipe.encode_prompt(texts[part], clean.device, 1, False)[0]
            predicted = pipe.unet(noised, steps[part], embeddings, return_dict=False)[0]
            target = prediction_target(self.schedule, clean[part], noise[part], steps[part])
            errors.append(squared_errors(predicted, target))
        if self.name is not None:
            set_coefficients(pipe, {})
        return float(torch.cat(errors).mean())

    # --- pictures -----------------------------------------------------------------------------------------------------

    def draw(self, prompts: Sequence[str], first_seed: int, gate: Gate | None = None) -> list[Image.Image]:
        """A picture of each prompt, each of the next seed, by the path that everybody draws with."""
        run, subjects = self.run, {} if self.name is None else {self.name: 1.0}
        common = DrawRequest(
            "",
            subjects=subjects,
            gate=gate,
            steps=run.draw_steps,
            guidance_scale=run.guidance_scale,
            scheduler=run.scheduler,
        )
        requests = [replace(common, prompt=prompt, seed=first_seed + i) for i, prompt in enumerate(prompts)]
        batches = [requests[start : start + DRAWN_AT_ONCE] for start in range(0, len(requests), DRAWN_AT_ONCE)]
        return [picture.image for batch in batches for picture in self.studio.draw_batch(batch)]

    def keep(self, pictures: Sequence[Image.Image], what: str) -> None:
        """Save pictures of the first seed: to compare with, for the grid, and to look at."""
        if self.run.seed:
            return
        for number, picture in enumerate(pictures):
            path = picture_path(self.settings, self.run, what, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)

    def likeness(self, drawn: list[Image.Image]) -> dict[str, float]:
        """Mean cosine of the features of drawn and unseen pictures; for the base alone also of the unseen ones."""
        extract = FeatureExtractor(self.pipe.device)
        unseen = extract([read_image(path) for path in self.subject.unseen])  # [N, F]
        found = {"similarity": float((extract(drawn) @ unseen.T).mean())}
        if self.run.method == NOTHING:
            others = ~torch.eye(len(unseen), dtype=torch.bool, device=unseen.device)
            found["ceiling"] = float((unseen @ unseen.T)[others].mean())
        return found

    def drift(self, gate: Gate | None) -> dict[str, float]:
        """What became of other concepts and of the class: loss on the base's pictures, and change of them, 0 to 255."""
        with_class = [f"{with_article(self.subject.class_word)} {ground}" for ground in grounds()[::5]]
        drawn: dict[str, list[Image.Image]] = {}
        for what, prompts in (("unrelated", UNRELATED), ("class", with_class)):
            drawn[what] = self.draw(prompts, 100, gate)
            self.keep(drawn[what], what if gate is None else f"{what}-{gate}")
        paths = {what: reference_paths(self.settings, self.run, what, len(drawn[what])) for what in drawn}
        found = {"drift_loss": self.loss(paths["unrelated"], UNRELATED, gate)}
        if self.run.method != NOTHING:
            found["drift_change"] = mean_change(drawn["unrelated"], paths["unrelated"])
            found["class_change"] = mean_change(drawn["class"], paths["class"])
        return found


def picture_path(settings: Settings, run: Run, what: str, number: int) -> Path:
    """Where a picture of a run is kept."""
    return Path(settings.output_dir) / "pictures" / run.stem / f"{what}-{number:02d}.png"


def reference_paths(settings: Settings, run: Run, what: str, count: int) -> list[Path]:
    """The base's own pictures of the same prompts and noise."""
    return [picture_path(settings, run.reference, what, number) for number in range(count)]


def mean_change(pictures: Sequence[Image.Image], references: Sequence[Path]) -> float:
    """Mean absolute difference of pixels, 0 to 255."""
    pairs = [(_pixels(one), _pixels(read_image(path))) for one, path in zip(pictures, references, strict=True)]
    return float(np.mean([np.abs(first - second).mean() for first, second in pairs]))


def _pixels(picture: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray(picture.convert("RGB"), dtype=np.float64)


def nearest_colour(picture: Image.Image) -> str:
    """The named colour nearest to the mean of a picture's border, one part in 32 wide."""
    pixels = _pixels(picture)
    width = max(1, len(pixels) // 32)
    border = np.ones(pixels.shape[:2], dtype=bool)
    border[width:-width, width:-width] = False
    distances = {name: np.square(pixels[border].mean(0) - colour).sum() for name, colour in COLOURS.items()}
    return min(distances, key=lambda name: float(distances[name]))
