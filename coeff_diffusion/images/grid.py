"""Many pictures on one sheet, with a label for each row and column."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .generation_info import PictureError

MAX_PIXELS = 85 * 2**20  # 8 x 8 cells of 1,024 pixels and their labels; Pillow warns of pictures a little larger


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """One picture of many: rows of pictures with a label over each column and left of each row.

    Cells are as large as the largest picture; labels are wrapped to their cell, in Pillow's own font scaled with it.

    Raises:
        PictureError: no pictures, labels that do not match the rows or columns, or more than `MAX_PIXELS`.
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
