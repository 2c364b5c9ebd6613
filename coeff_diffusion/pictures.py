"""Pictures on disk: the text that remembers how one was drawn, labelled grids, and saving that never overwrites.

The text follows the form that A1111's web UI writes into the PNG chunk `parameters` and that most tools read:

    a photo of sks dog on the beach
    Negative prompt: blurry
    Steps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 7, Size: 128x128, Model: embedded, Subjects: "{\"dog\": 0.8}"
"""

import io
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin, UnidentifiedImageError

from .files import atomic_write

PARAMETERS = "parameters"
NEGATIVE = "Negative prompt:"
MAX_PIXELS = 64 * 1024 * 1024
# `Key: value` or `Key: "quoted value"`, separated by commas: the expression A1111 itself reads with.
FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
Number = TypeVar("Number", int, float)


class PictureError(ValueError):
    """A picture cannot be read or written, or carries no parameters."""


@dataclass(frozen=True)
class Parameters:
    """How a picture was drawn.

    Attributes:
        subjects: strength of each subject, by name.
        extra: further keys in the order they stand, kept as written.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int | None = None
    sampler: str | None = None
    guidance_scale: float | None = None
    guidance_rescale: float | None = None
    seed: int | None = None
    width: int | None = None
    height: int | None = None
    model: str | None = None
    subjects: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, str] = field(default_factory=dict)


def format_parameters(parameters: Parameters) -> str:
    """The text other UIs read. `parse_parameters` gives back exactly what went in."""
    p = parameters
    fields: dict[str, object] = {
        "Steps": p.steps,
        "Sampler": p.sampler,
        "CFG scale": p.guidance_scale,
        "Guidance rescale": p.guidance_rescale,
        "Seed": p.seed,
        "Size": None if p.width is None or p.height is None else f"{p.width}x{p.height}",
        "Model": p.model,
        "Subjects": json.dumps(dict(p.subjects), ensure_ascii=False) if p.subjects else None,
        **p.extra,
    }
    # The form cannot tell every prompt from its own syntax. Where reading would change one, it is kept aside, exactly.
    if _split(f"{_prompts(p)}\nSteps: 1, Seed: 1, Size: 8x8")[:2] != (p.prompt, p.negative_prompt):
        fields |= {"Exact prompt": json.dumps(p.prompt), "Exact negative prompt": json.dumps(p.negative_prompt)}
    line = ", ".join(f"{key}: {_quote(value)}" for key, value in fields.items() if value is not None)
    return f"{_prompts(p)}\n{line}"


def parse_parameters(text: str) -> Parameters:
    """Read the text of any tool that writes A1111's form; keys that are not ours land in `extra`.

    Raises:
        PictureError: a value of ours is not what it should be.
    """
    prompt, negative, found = _split(text)
    fields = {key: _unquote(value) for key, value in found.items()}
    size = fields.pop("Size", None)
    try:
        width, height = (int(side) for side in size.lower().split("x")) if size else (None, None)
        subjects = json.loads(fields.pop("Subjects", "{}"))
        return Parameters(
            prompt=str(json.loads(fields.pop("Exact prompt", json.dumps(prompt)))),
            negative_prompt=str(json.loads(fields.pop("Exact negative prompt", json.dumps(negative)))),
            steps=_optional(int, fields.pop("Steps", None)),
            sampler=fields.pop("Sampler", None),
            guidance_scale=_optional(float, fields.pop("CFG scale", None)),
            guidance_rescale=_optional(float, fields.pop("Guidance rescale", None)),
            seed=_optional(int, fields.pop("Seed", None)),
            width=width,
            height=height,
            model=fields.pop("Model", None),
            subjects={str(name): float(strength) for name, strength in subjects.items()},
            extra=fields,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise PictureError(f"the picture's parameters cannot be read: {error}") from error


def read_parameters(path: str | Path) -> Parameters:
    """The parameters a PNG file carries.

    Raises:
        PictureError: not a picture, none in it, or text chunks of a size that no honest picture has.
    """
    try:
        with Image.open(path) as image:
            image.load()  # the text may stand behind the pixels
            text = getattr(image, "text", {}).get(PARAMETERS)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise PictureError(f"{path} is not a readable picture: {error}") from error
    if not text:
        raise PictureError(f"{path} carries no drawing parameters; expected a PNG with a {PARAMETERS!r} text")
    return parse_parameters(str(text))


def save_picture(image: Image.Image, path: str | Path, parameters: str | None = None) -> Path:
    """Write a PNG in one move (a reader sees the old file or the new one, never half of it).

    Args:
        parameters: the text of `format_parameters`, stored in the chunk `parameters`.
    """
    info = PngImagePlugin.PngInfo()
    if parameters:
        info.add_text(PARAMETERS, parameters)
    data = io.BytesIO()
    image.save(data, format="PNG", pnginfo=info)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(data.getvalue())
    return path


def check_folder(folder: str | Path) -> Path:
    """Make a folder for pictures and make sure, before anything is drawn, that it can be written.

    Raises:
        PictureError: it cannot.
    """
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"writable")
    except OSError as error:
        raise PictureError(f"pictures cannot be written to {folder}: {error.strerror or error}") from error
    return folder


def free_path(folder: str | Path, stem: str, suffix: str = ".png") -> Path:
    """Claim the next unused numbered name in a folder: `00001-<stem>.png`, `00002-<stem>.png`, ...

    The name is taken by creating an empty file, so two processes drawing at once never get the same one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [int(found[1]) for path in folder.iterdir() if (found := re.match(r"(\d{5,})-", path.name))]
    number = max(numbers, default=0) + 1
    while True:
        path = folder / f"{number:05d}-{stem}{suffix}"
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return path


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """One picture of many: rows of pictures with a label over each column and left of each row.

    Cells are as large as the largest picture; labels are wrapped to their cell, in Pillow's own font scaled with it.

    Raises:
        PictureError: no pictures, labels that do not match the rows or columns, or more than 64 million pixels.
    """
    columns = max((len(row) for row in rows), default=0)
    if columns == 0:
        raise PictureError("a grid needs at least one picture")
    if (row_labels and len(row_labels) != len(rows)) or (column_labels and len(column_labels) != columns):
        raise PictureError(
            f"a grid of {len(rows)} rows and {columns} columns got {len(row_labels)} row and "
            f"{len(column_labels)} column labels"
        )
    width = max(image.width for row in rows for image in row)
    height = max(image.height for row in rows for image in row)
    font = ImageFont.load_default(max(10, min(width, height) // 11))
    gap = max(2, width // 32)
    tops = [_wrap(label, font, width) for label in column_labels]
    sides = [_wrap(label, font, width) for label in row_labels]
    top = max((_text_size(text, font)[1] for text in tops), default=0) + (gap if tops else 0)
    side = max((_text_size(text, font)[0] for text in sides), default=0) + (gap if sides else 0)
    heights = [max(height, _text_size(sides[i], font)[1] if sides else 0) for i in range(len(rows))]
    size = (side + columns * (width + gap) + gap, top + sum(heights) + gap * (len(rows) + 1))
    if size[0] * size[1] > MAX_PIXELS:
        raise PictureError(f"a grid of {size[0]} x {size[1]} pixels is too large; draw fewer or smaller pictures")

    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, text in enumerate(tops):
        middle = side + gap + column * (width + gap) + width / 2
        draw.multiline_text((middle, top), text, fill="black", font=font, anchor="md", align="center")
    y = top + gap
    for row, images in enumerate(rows):
        if sides:
            draw.multiline_text((gap, y + heights[row] / 2), sides[row], fill="black", font=font, anchor="lm")
        for column, image in enumerate(images):
            sheet.paste(image.convert("RGB"), (side + gap + column * (width + gap), y))
        y += heights[row] + gap
    return sheet


# --- the text ---------------------------------------------------------------------------------------------------------


def _prompts(p: Parameters) -> str:
    return f"{p.prompt}\n{NEGATIVE} {p.negative_prompt}" if p.negative_prompt else p.prompt


def _split(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and the raw fields of the last line, split the way A1111 does."""
    lines = text.strip().split("\n")
    fields = dict(FIELD.findall(lines[-1]))
    if len(fields) < 3:  # then the last line is part of a prompt
        fields = {}
    else:
        lines = lines[:-1]
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        stripped = line.strip()
        if stripped.startswith(NEGATIVE):
            target, stripped = negative, stripped[len(NEGATIVE) :].strip()
        target.append(stripped)
    return "\n".join(prompt).strip(), "\n".join(negative).strip(), fields


def _quote(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[,:"\\]|\s$|^\s|[\x00-\x1f]', text) else text


def _unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text.strip()
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _optional(kind: Callable[[str], Number], text: str | None) -> Number | None:
    return None if text is None else kind(text)


# --- the grid ---------------------------------------------------------------------------------------------------------


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_cut(word, font, width))
    return "\n".join(lines)


def _cut(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    while len(word) > 1 and font.getlength(word) > width:
        word = word.removesuffix("…")[:-1] + "…"
    return word


def _text_size(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> tuple[int, int]:
    if not text:
        return (0, 0)
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return (int(box[2]) + 1, int(box[3]) + 1)
