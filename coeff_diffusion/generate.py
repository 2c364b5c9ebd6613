"""`coeff-diffusion generate`: subjects and prompts in, picture files out, nothing overwritten."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from .drawing import DrawProgress, DrawRequest, Picture, StudioError
from .pictures import check_folder, free_path, labelled_grid, save_picture
from .pipeline import load_base
from .studio import Studio


@dataclass
class GenerateConfig:
    """Draw pictures and save each as a PNG that remembers how it was drawn."""

    prompt: list[str] = field(default_factory=list)
    """What to draw. Repeat it to draw several prompts from the same seeds."""
    subject: list[str] = field(default_factory=list)
    """A subject to load: file, folder or Hub id, and after a colon its strength (dog.safetensors:0.8; 1 if left out).
    Repeat it for several."""
    base: str = "embedded"
    """The base: "embedded", a diffusers folder, a .safetensors checkpoint or a Hub id."""
    revision: str | None = None
    """Branch, tag or commit of a base from the Hub."""
    base_config: str | None = None
    """For a single checkpoint: the diffusers folder or Hub id its component configs are read from."""
    negative_prompt: str = ""
    """What the pictures should not show."""
    seed: int | None = None
    """Seed of the first picture, the next ones count up; left out, it is drawn at random and printed."""
    num_inference_steps: int = 20
    """Denoising steps."""
    guidance_scale: float = 7.5
    """How strongly the picture follows the prompt; 1 turns guidance off."""
    guidance_rescale: float | None = None
    """Correction of overexposure by guidance, 0 to 1; left out, 0.7 for a base with zero terminal SNR, else 0."""
    scheduler: str | None = None
    """Sampler: DDIM, "Euler a", "DPM++ 2M", UniPC, ... or a diffusers class name; left out, the base's own."""
    width: int | None = None
    """Pixels; left out, the size the base was trained at."""
    height: int | None = None
    """Pixels; left out, the size the base was trained at."""
    batch_size: int = 1
    """Pictures per prompt, drawn at once."""
    compare: bool = False
    """Draw each picture also by the base alone, from the same noise, the trigger replaced by the class word."""
    grid: bool = False
    """Save one more picture: all pictures with labels, one row per prompt, the base's beside the subject's (implies
    --compare when a subject is loaded)."""
    output_dir: str = "outputs/pictures"
    """Where the pictures go, under the next free numbers."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is the GPU where there is one."""
    dtype: str = "float32"
    """Of the base's weights: float32, float16, bfloat16."""


def generate(config: GenerateConfig, say: Callable[[str], None] = print) -> list[Path]:
    """Draw what `config` asks for and return the files, the grid (if one was asked for) last.

    Args:
        say: gets one line per fact the user wants to know.

    Raises:
        StudioError, BaseModelError, CoefficientsError, OSError: with a message of one line.
    """
    if not config.prompt:
        raise StudioError("nothing to draw; give a --prompt")
    wanted = [split_strength(text) for text in config.subject]
    studio = Studio(load_base(config.base, revision=config.revision, dtype=config.dtype, device=config.device,
                              config=config.base_config))  # fmt: skip
    check_folder(config.output_dir)
    strengths: dict[str, float] = {}
    for source, strength in wanted:
        name = studio.load(source)
        strengths[name] = strength
        trigger = studio.subjects[name].info.trigger
        say(f"subject {name!r} at strength {strength:g}" + (f", called up by {trigger!r}" if trigger else ""))
    return draw_all(studio, config, strengths, say)


def draw_all(
    studio: Studio, config: GenerateConfig, strengths: dict[str, float], say: Callable[[str], None] = print
) -> list[Path]:
    """Draw every prompt of `config` with subjects that are loaded already."""
    compare = bool(strengths) and (config.compare or config.grid)
    files: list[Path] = []
    rows: list[list[Image.Image]] = []
    seed = config.seed
    for prompt in config.prompt:
        request = DrawRequest(
            prompt=prompt,
            negative_prompt=config.negative_prompt,
            subjects=strengths,
            seed=seed,
            steps=config.num_inference_steps,
            guidance_scale=config.guidance_scale,
            guidance_rescale=config.guidance_rescale,
            scheduler=config.scheduler,
            width=config.width,
            height=config.height,
            batch_size=config.batch_size,
        )
        for note in studio.notes(request):
            say(f"note: {note}")
        base: list[Picture] = []
        with _progress(prompt) as on_step:
            if compare:
                base, pictures = studio.compare(request, on_step=on_step)
            else:
                pictures = studio.draw(request, on_step=on_step)
        seed = pictures[0].seed  # a random seed is drawn once and holds for every prompt
        for picture, tag in [*((p, "-base") for p in base), *((p, "") for p in pictures)]:
            path = free_path(config.output_dir, f"{picture.seed}{tag}")
            files.append(save_picture(picture.image, path, picture.parameters))
            say(f"{path}")
        rows.append([picture.image for picture in (*base, *pictures)])
    if config.grid:
        columns = ["base"] * config.batch_size if compare else []
        columns += [" + ".join(strengths) or "base"] * config.batch_size
        path = free_path(config.output_dir, "grid")
        files.append(save_picture(labelled_grid(rows, config.prompt, columns), path))
        say(f"{path}")
    return files


def split_strength(text: str) -> tuple[str, float]:
    """`"dog.safetensors:0.8"` -> `("dog.safetensors", 0.8)`; without a number after the last colon the strength is 1.

    Raises:
        StudioError: the strength is not finite.
    """
    source, colon, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:
        return text, 1.0  # no strength: the colon, if any, is part of the path (C:\\subjects\\dog.safetensors)
    if not colon or not source:
        return text, 1.0
    if not math.isfinite(strength):
        raise StudioError(f"the strength in {text!r} is {number}, expected a finite number")
    return source, strength


@contextmanager
def _progress(prompt: str) -> Iterator[Callable[[DrawProgress], None]]:
    """A bar on stderr that follows the denoising steps."""
    bars: list[Any] = []

    def on_step(progress: DrawProgress) -> None:
        if progress.step == 1:  # not before: a request that is refused should leave one clean line
            bars.append(tqdm(desc=prompt[:40], total=progress.total, unit="step", file=sys.stderr, leave=False))
        bars[-1].update(progress.step - bars[-1].n)

    try:
        yield on_step
    finally:
        for bar in bars:
            bar.close()
