"""`coeff-diffusion generate`: subjects and prompts in, picture files out, nothing overwritten."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..families.load import EMBEDDED, load_base
from ..images.drawing_settings import LAYERS, SETTINGS
from ..images.files import check_folder, save_new_picture
from ..images.grid import labelled_grid
from ..images.shapes import size_of
from ..inference.fitting import fitted
from ..inference.limits import within_limits
from ..inference.replay import Base, Part, Replay
from ..inference.request import DrawProgress, DrawRequest, Picture, StudioError, split_strength
from ..inference.studio import Studio
from ..inference.templates import Templates, check_templates
from ..inference.upscaling import load_upscaler
from ..sources.image_card import called, chunks
from ..sources.open import open_subject
from ..subject.errors import shown
from ..subject.printable import printable
from .generate_config import GenerateConfig, drawing_flags
from .given_parts import controlled, refined, started


def generate(config: GenerateConfig, say: Callable[[str], None] = print) -> list[Path]:
    """Draw what `config` asks for and return the files, the grid (if one was asked for) last.

    Args:
        say: gets one line per fact the user wants to know.

    Raises:
        StudioError, PictureError, BaseModelError, CoefficientsError, OSError: with a message of one line.
    """
    replay = None if config.from_picture is None else Replay.read(config.from_picture)
    request, place = (DrawRequest(""), None) if replay is None else replay.request()
    prompts = config.prompt or ([] if replay is None else [request.prompt])
    if replay is not None and not config.prompt and not replay.says_prompt:
        raise StudioError(f"{replay.path} does not say its prompt; give one with --prompt")
    if not prompts:
        raise StudioError("nothing to draw; give a --prompt, or a picture to draw again with --from")
    templates = check_templates(config.styles_dir) if config.prompt else None  # what a picture says is written out
    if templates is None and (config.style or config.styles_dir is not None):
        what = "--style goes around" if config.style else "--styles_dir has styles and wildcards for"
        raise StudioError(f"{what} a --prompt; give one")
    parts = [_given(text) for text in config.subject]
    notes: list[str] = []
    if replay is not None:
        parts, notes = replay.parts(parts)
        notes = [*replay.notes, *notes]
        say(f"again from {replay.path}: {shown(prompts[0])}")
    if config.embed_subjects:
        chunks([part.subject for part in parts])  # says now, not after the drawing, that they cannot be embedded
    request, place = _overridden(config, request, place)
    request, start_notes = started(request, replay, config.init_image, config.mask)
    if request.start and request.start.mask is None and SETTINGS["mask_blur"].flag not in config.settings:
        request = replace(request, mask_blur=None)  # of the replay
    notes += start_notes
    studio, base_notes = _studio(config, replay)
    request, control_notes = controlled(request, replay, config.control_image, config.controlnet, studio)
    request, refiner_notes = refined(request, replay, config.refiner, studio)
    notes += [*control_notes, *refiner_notes]
    if replay is not None:
        chosen = [name for name, one in SETTINGS.items() if one.flag in config.settings]
        request, place, limit_notes = within_limits(studio, request, place, chosen)
        request, fit_notes = fitted(studio, request, chosen=chosen)
        notes += [*limit_notes, *fit_notes]
    notes += _enlarged(config, request, replay, studio)
    if config.aspect_ratio is not None:
        request = _shaped(request, config, studio)
    check_folder(config.output_dir)
    request = replace(request, subjects=_load(studio, parts, say))
    for note in [*notes, *base_notes]:
        say(f"note: {note}")
    return draw_all(studio, config, prompts, request, place, say, templates)


def draw_all(
    studio: Studio,
    config: GenerateConfig,
    prompts: Sequence[str],
    request: DrawRequest,
    place: int | None = None,
    say: Callable[[str], None] = print,
    templates: Templates | None = None,
) -> list[Path]:
    """Draw every prompt with subjects that are loaded already, and save the pictures.

    Args:
        config: which pictures to save, what they carry, and where.
        request: what to draw, but for the prompt.
        place: the one picture of each batch to keep; None keeps all.
        templates: the styles and wildcards of prompts; None takes them as they are.
    """
    compare = bool(request.subjects) and (config.compare or config.grid)
    files: list[Path] = []
    rows: list[list[Image.Image]] = []
    labels: list[str] = []
    for prompt in prompts:
        asked = replace(request, prompt=prompt)
        if templates is not None:
            bare = replace(asked, template="", negative_template="", styles="")
            asked = templates.applied(bare, config.style)
        if asked.prompt != prompt:
            say(f"drawn as: {shown(asked.prompt)}")
        for note in studio.notes(asked):
            say(f"note: {note}")
        base: list[Picture] = []
        with _progress(prompt) as on_step:
            if compare:
                base, pictures = studio.compare(asked, on_step=on_step)
            else:
                pictures = studio.draw(asked, on_step=on_step)
        request = replace(request, seed=pictures[0].seed)  # a random seed is drawn once and holds for every prompt
        if place is not None:
            base, pictures = base[place : place + 1], pictures[place : place + 1]
        for picture, tag in [*((p, "-base") for p in base), *((p, "") for p in pictures)]:
            files.append(_save(picture, f"{picture.seed}{tag}", config, say))
        rows.append([picture.image for picture in (*base, *pictures)])
        labels = ["base"] * len(base) + [" + ".join(request.subjects) or "base"] * len(pictures)
    if config.grid:
        files.append(save_new_picture(labelled_grid(rows, prompts, labels), config.output_dir, "grid"))
        say(f"{files[-1]}")
    return files


def _given(text: str) -> Part:
    """The subject of a `--subject` flag."""
    source, strength = split_strength(text)
    return Part(open_subject(source), strength=None if source == text else strength, source=source)


def _overridden(config: GenerateConfig, request: DrawRequest, place: int | None) -> tuple[DrawRequest, int | None]:
    """The request with what the flags say. With another seed or batch a picture has no place in its batch any more."""
    if unknown := sorted(config.settings.keys() - drawing_flags().keys()):
        raise StudioError(f"there is no setting {unknown[0]!r}; there are {', '.join(drawing_flags())}")
    given, layers = (
        {name: config.settings[one.flag] for name, one in table.items() if one.flag in config.settings}
        for table in (SETTINGS, LAYERS)
    )
    if place is not None and ("seed" in given or "batch_size" in given):
        assert request.seed is not None
        request, place = replace(request, seed=request.seed + place, batch_size=1), None
    request = replace(request, **given, layers=replace(request.layers, **layers))
    return (request if request.has("hires_scale") else _in_one_pass(request, config)), place


def _in_one_pass(request: DrawRequest, config: GenerateConfig) -> DrawRequest:
    """The request without what a picture says of its second pass, which is not drawn; what flags say is refused."""
    of_second = [one for one in SETTINGS.values() if one.of == "hires_scale" and one.flag not in config.settings]
    return replace(request, **{one.name: one.default for one in of_second})


def _enlarged(config: GenerateConfig, request: DrawRequest, replay: Replay | None, studio: Studio) -> list[str]:
    """Give the studio what makes pictures larger; returns notes for the user.

    Raises:
        StudioError: nothing is to be larger, or it is no network that does so.
    """
    enlarges = request.upscale > 1 or request.has("hires_scale")
    if config.upscaler is not None:
        if not enlarges:
            raise StudioError("--upscaler enlarges what is drawn; say how many times with --upscale or --hires_scale")
        studio.upscaler = load_upscaler(config.upscaler, studio.pipe.device)
    return replay.other_upscaler(studio.upscaler) if replay is not None and enlarges else []


def _shaped(request: DrawRequest, config: GenerateConfig, studio: Studio) -> DrawRequest:
    """The request at the size of the shape that is asked for."""
    assert config.aspect_ratio is not None
    if sides := [flag for flag in ("width", "height") if flag in config.settings]:
        raise StudioError(f"--aspect_ratio and --{sides[0]} exclude each other; give one of them")
    try:
        width, height = size_of(config.aspect_ratio, studio.size, studio.multiple)
    except ValueError as error:
        raise StudioError(f"--aspect_ratio: {error}") from error
    return replace(request, width=width, height=height)


def _studio(config: GenerateConfig, replay: Replay | None) -> tuple[Studio, list[str]]:
    """The base to draw with, and a note where it is not the one of the replay but the user wants it so.

    Raises:
        StudioError: it is not the one of the replay, and nobody said which to take.
    """
    if replay is not None and config.base is None:
        _refuse(replay.other_base(Base(EMBEDDED)))
    recorded = "" if replay is None else replay.parameters.precision or ""
    dtype, _, quantization = recorded.partition("/")
    pipe = load_base(
        config.base or EMBEDDED,
        revision=config.revision,
        dtype=config.dtype or dtype or "float32",
        device=config.device,
        config=config.base_config,
        vae=config.pretrained_vae_model_name_or_path,
        quantization=config.quantization or quantization or "no",
    )
    problem = None if replay is None else replay.other_base(Base.of(pipe))
    if config.base is None:
        _refuse(problem)
    return Studio(pipe), [f"{problem}; it will not be the same picture"] if problem else []


def _refuse(problem: str | None) -> None:
    if problem:
        raise StudioError(f"{problem}; give the one it was drawn by, or any other that shall draw it, with --base")


def _load(studio: Studio, parts: Sequence[Part], say: Callable[[str], None]) -> dict[str, float]:
    """Load the subjects and return the strength of each by its name; of two of one name the second gets a number."""
    strengths: dict[str, float] = {}
    for part in parts:
        info = part.subject.info
        stem = name = part.name or info.name or info.trigger or "subject"
        number = 2
        while name in strengths:
            name, number = f"{stem}-{number}", number + 1
        studio.load(part.subject, name)
        strengths[name] = strength = 1.0 if part.strength is None else part.strength
        trigger = f", called up by {shown(info.trigger)}" if info.trigger else ""
        say(f"subject {shown(name)} at strength {strength:g}{trigger}")
    return strengths


def _save(picture: Picture, stem: str, config: GenerateConfig, say: Callable[[str], None]) -> Path:
    """Save a picture and say where it is and what it carries."""
    subjects = list(dict.fromkeys(picture.subjects.values())) if config.embed_subjects else []
    pictures = picture.request.pictures if config.embed_init_image else []
    inside = [*chunks(subjects), *(chunk for one in pictures for chunk in one.chunks())]
    path = save_new_picture(picture.image, config.output_dir, stem, picture.parameters, inside)
    size = sum(len(content) for _, content in inside)
    names = [*map(called, subjects), *(one.carried for one in pictures)]
    carries = f", which carries {', '.join(names)}: {size:,} bytes" if names else ""
    say(f"{path}{carries}")
    return path


@contextmanager
def _progress(prompt: str) -> Iterator[Callable[[DrawProgress], None]]:
    """A bar on stderr that follows the denoising steps."""
    bars: list[Any] = []
    label = printable(prompt[:40])

    def on_step(progress: DrawProgress) -> None:
        if progress.step == 1:  # not before: a request that is refused should leave one clean line
            bars.append(tqdm(desc=label, total=progress.total, unit="step", file=sys.stderr, leave=False))
        bars[-1].update(progress.step - bars[-1].n)

    try:
        yield on_step
    finally:
        for bar in bars:
            bar.close()
