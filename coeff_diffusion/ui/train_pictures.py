"""The pictures that are dropped for a training: each as training sees it, what is wrong with it, what it shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..images.photo import DatasetError
from ..service import StudioService
from ..service.crop_editor import Corner, box_between, corner_at, picture_with_box, read_box, write_box
from ..service.thumbnails import greyed, stand_in
from ..training.captions import SUFFIXES, TABLES
from ..training.crop_boxes import Box
from .common import QUIET, REFUSALS, or_refusal, refusal, status_line
from .paint import canvas, paint_editor, painted

Values = dict[Any, Any]
CSS = """
#train-crops .grid-wrap { height: auto; min-height: 0; max-height: 24rem; padding-top: 2.6rem; }
#train-crops .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; align-items: start; }
#train-crops .thumbnail-item { display: flex; flex-direction: column; height: auto; aspect-ratio: auto; }
#train-crops .thumbnail-item img { aspect-ratio: 1; height: auto; }
#train-crops .caption-label { position: static; width: 100%; max-width: none; border: 0; opacity: 1;
  white-space: normal; overflow-wrap: anywhere; text-align: start; }
#train-remarks p, #train-captions p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Looked:
    """What a browser knows of its pictures.

    Attributes:
        paths: in the order they are shown in.
        captions: what their files say.
        written: what was written on the page instead.
        chosen: the one that is looked at.
        boxes: the parts of pictures that are used.
        corner: of a box in the chosen one, of which the opposite corner is still to be clicked.
        masks: what was painted over pictures, mode L: white counts.
        painting: the one that is being painted over.
    """

    paths: tuple[str, ...] = ()
    captions: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    chosen: str | None = None
    boxes: dict[str, Box] = field(default_factory=dict)
    corner: Corner | None = None
    masks: dict[str, Image.Image] = field(default_factory=dict)
    painting: str | None = None

    def with_words(self, text: str | None) -> dict[str, str]:
        """What is written of all, where this stands in the field of the chosen one now."""
        if self.chosen is None or (text or "") == self.words(self.chosen):
            return self.written
        return {**self.written, self.chosen: text or ""}

    def with_box(self, text: str | None) -> dict[str, Box]:
        """The parts of all, where this stands in the field of the chosen one now. Raises StudioError: it is none."""
        if self.chosen is None or (text or "") == write_box(self.boxes.get(self.chosen)):
            return self.boxes
        others = {path: box for path, box in self.boxes.items() if path != self.chosen}
        box = read_box(text or "")
        return others if box is None else {**others, self.chosen: box}

    def with_mask(self, drawn: dict[str, Any] | None) -> dict[str, Image.Image]:
        """The masks of all, where this is in the editor now."""
        if self.painting is None or drawn is None or drawn["background"] is None:
            return self.masks
        mask = painted(drawn, drawn["background"].size)
        return self.masks if mask is None else {**self.masks, self.painting: mask}

    def words(self, path: str) -> str:
        """What is said of a picture."""
        return self.written.get(path, self.captions.get(path, ""))


class Pictures:
    """The place that they are dropped on, and what shows once they are there."""

    def __init__(self, service: StudioService) -> None:
        self.service = service
        self.files = gr.File(
            label="Drop about five pictures (captions, masks)",
            file_count="multiple",
            file_types=["image", ".heic", ".heif", ".avif", *SUFFIXES, *(Path(name).suffix for name in TABLES)],
            height=140,
            elem_id="train-pictures",
        )
        self.remarks = gr.HTML(elem_id="train-remarks", padding=False)
        self.crops = gr.Gallery(
            label="What training sees; pick one to change it",
            visible=False,
            format="png",
            columns=None,
            height="auto",
            object_fit="contain",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="train-crops",
        )
        self.write = gr.Button("Write captions", size="sm", visible=False, elem_id="train-write-captions")
        self.told = gr.HTML(elem_id="train-captions", padding=False)
        with gr.Column(visible=False, elem_id="train-picture") as self.one:
            self.caption = gr.Textbox(label="Caption", max_lines=6, elem_id="train-caption")
            self.whole = gr.Image(
                label="Click two opposite corners of the part that is used",
                show_label=False,  # it would lie on the picture; the field below says it
                interactive=False,
                format="png",
                height=300,
                buttons=[],
                elem_id="train-whole",
            )
            self.box = gr.Textbox(
                label="Part that is used",
                info="Click two opposite corners in the picture, or write left, top, right and bottom in percent, such "
                "as 10, 0, 90, 100, and press Enter. Empty: all of it",
                elem_id="train-box",
            )
            self.mask = gr.Button("Paint what counts", size="sm", elem_id="train-mask")
            with gr.Column(visible=False) as self.painting:
                gr.Markdown(
                    "What is not painted over is not learned. It replaces a mask from a file, and what was painted "
                    "before; with nothing painted, those count, or all of the picture."
                )
                self.paint = paint_editor("What counts", "train-paint")
                self.keep = gr.Button("Keep what is painted", size="sm", elem_id="train-keep-mask")
            self.out = gr.Button("Take it out", size="sm", elem_id="train-take-out")
        self.looked = gr.State(Looked())

    def inputs(self) -> list[Any]:
        """What `given`, `captions`, `boxes` and `masks` read."""
        return [self.files, self.caption, self.box, self.paint, self.looked]

    def given(self, values: Values) -> list[Path]:
        """The files."""
        return paths_of(values[self.files])

    def captions(self, values: Values) -> dict[Path, str]:
        """What was written on the page."""
        return {Path(path): text for path, text in values[self.looked].with_words(values[self.caption]).items()}

    def boxes(self, values: Values) -> dict[Path, Box]:
        """The parts of pictures that were chosen on the page."""
        return {Path(path): box for path, box in values[self.looked].with_box(values[self.box]).items()}

    def masks(self, values: Values) -> dict[Path, Image.Image]:
        """What was painted over pictures on the page."""
        return {Path(path): mask for path, mask in values[self.looked].with_mask(values[self.paint]).items()}

    def wire(self, crop: gr.Checkbox, seed: gr.Number, class_word: gr.Textbox) -> None:
        """Look at pictures as they come and go, and at the one that is picked."""
        editor = [self.looked, self.one, self.caption, self.whole, self.box, self.painting, self.out]
        asked = [self.files, crop, seed, class_word, self.caption, self.looked]

        def look(
            files: list[str] | None, crop: bool, seed: int | None, word: str | None, text: str | None, seen: Looked
        ) -> Values:
            given = paths_of(files)
            boxes = {Path(path): box for path, box in seen.boxes.items()}
            found = or_refusal(self.service.training_queue.check, given, crop, seed or 0, word or "", boxes)
            shown = [
                (found.crops.get(path) or greyed(stand_in()), " · ".join([path.name, *about]))
                for path, about in found.about.items()
            ]
            paths = tuple(map(str, found.about))
            captions = {str(path): words for path, words in found.captions.items()}
            written = {path: words for path, words in seen.with_words(text).items() if path in paths}
            kept = {path: box for path, box in seen.boxes.items() if path in paths}
            masks = {path: mask for path, mask in seen.masks.items() if path in paths}
            chosen = seen.chosen if seen.chosen in paths else None
            return {
                self.crops: gr.Gallery(shown, visible=bool(shown), selected_index=_place(paths, chosen)),
                self.remarks: status_line(*found.refused, *found.notes),
                self.told: "",
                self.write: gr.Button(visible=bool(shown) and self.service.caption_writer.name is not None),
                **self._edit(
                    replace(
                        seen,
                        paths=paths,
                        captions=captions,
                        written=written,
                        chosen=chosen,
                        boxes=kept,
                        masks=masks,
                        painting=seen.painting if seen.painting in paths else None,
                    )
                ),
            }

        def pick(event: gr.SelectData, text: str | None, box: str | None, seen: Looked) -> Values:
            news = replace(
                seen,
                written=seen.with_words(text),
                chosen=seen.paths[event.index],
                boxes=or_refusal(seen.with_box, box),
                corner=None,
                painting=None,
            )
            return self._edit(news)

        def spread(seen: Looked) -> Values:
            assert seen.chosen is not None
            whole = _whole(Path(seen.chosen), None, None)
            return {
                self.looked: replace(seen, painting=seen.chosen),
                self.painting: gr.Column(visible=True),
                self.paint: canvas(whole),
            }

        # Does not fill the editor that it reads: gradio's would send what it holds without end.
        def keep(paint: dict[str, Any] | None, seen: Looked) -> Values:
            masks = seen.with_mask(paint)
            said = f"{len(masks)} of {len(seen.paths)} pictures have a painted mask."
            kept = replace(seen, masks=masks, painting=None)
            return {self.looked: kept, self.painting: gr.Column(visible=False), self.told: status_line(said)}

        def click(
            files: list[str] | None,
            crop: bool,
            seed: int | None,
            word: str | None,
            text: str | None,
            seen: Looked,
            event: gr.SelectData,
        ) -> Values:
            assert seen.chosen is not None
            corner = or_refusal(corner_at, Path(seen.chosen), event.index)
            if seen.corner is None:  # the opposite one is to come
                return self._edit(replace(seen, written=seen.with_words(text), corner=corner))
            boxes = {**seen.boxes, seen.chosen: or_refusal(box_between, seen.corner, corner)}
            return look(files, crop, seed, word, text, replace(seen, boxes=boxes, corner=None))

        def write(
            files: list[str] | None,
            crop: bool,
            seed: int | None,
            word: str | None,
            text: str | None,
            seen: Looked,
            box: str | None,
        ) -> Values:
            boxes = or_refusal(seen.with_box, box)
            return look(files, crop, seed, word, text, replace(seen, boxes=boxes, corner=None))

        def caption(text: str | None, seen: Looked) -> Iterator[Values]:
            """Only of pictures that have no words; what is written can be mended before the training starts."""
            written = dict(seen.with_words(text))
            boxes = {Path(path): box for path, box in seen.boxes.items()}
            wordless = [Path(path) for path in seen.paths if not replace(seen, written=written).words(path)]
            yield {self.told: status_line(f"Looking at {len(wordless)} pictures ...")}
            try:
                for done, (path, words) in enumerate(self.service.caption_writer.captions(wordless, boxes), start=1):
                    written[str(path)] = words
                    yield {self.told: status_line(f"{done} of {len(wordless)}: {path.name} shows {words}")}
            except REFUSALS as error:
                kept = self._edit(replace(seen, written=written))
                yield {self.told: status_line(str(error), refused=True), **kept}
                raise refusal(error) from error
            yield {
                self.told: status_line(f"{len(wordless)} captions written; pick a picture to mend its own."),
                **self._edit(replace(seen, written=written)),
            }

        def take_out(files: list[str] | None, seen: Looked) -> list[str] | None:
            return [file for file in files or [] if file != seen.chosen] or None

        shown_on: dict[str, Any] = {"show_progress_on": [self.crops], "api_visibility": "private"}
        outputs = [self.crops, self.remarks, self.told, self.write, *editor]
        gr.on([self.files.change, crop.input], look, asked, outputs, **shown_on)
        self.crops.select(pick, [self.caption, self.box, self.looked], editor, **QUIET)
        hidden = [self.looked, self.painting]
        self.mask.click(spread, self.looked, [*hidden, self.paint], **QUIET)
        self.keep.click(keep, [self.paint, self.looked], [*hidden, self.told], **QUIET)
        self.whole.select(click, asked, outputs, **shown_on)
        self.box.submit(write, [*asked, self.box], outputs, **shown_on)
        self.write.click(caption, [self.caption, self.looked], [self.told, *editor], **QUIET)
        self.out.click(take_out, [self.files, self.looked], self.files, **QUIET)

    def _edit(self, looked: Looked) -> Values:
        """The picture that is looked at, the words about it, and the part of it that is used."""
        news: Values = {
            self.looked: looked,
            self.one: gr.Column(visible=looked.chosen is not None),
            self.painting: gr.Column(visible=looked.painting is not None),
        }
        if looked.chosen is None:
            return news | {self.caption: "", self.box: "", self.whole: None}
        path, box = Path(looked.chosen), looked.boxes.get(looked.chosen)
        return news | {
            self.caption: gr.Textbox(
                looked.words(looked.chosen),
                label=f"Caption of {path.name}",
                info="What it shows; the trigger takes the class word's place. Empty: the prompt of all without words",
            ),
            self.whole: _whole(path, box, looked.corner),
            self.box: write_box(box),
            self.out: gr.Button(f"Take {path.name} out"),
        }


def paths_of(files: Sequence[str] | None) -> list[Path]:
    """The files of a `gr.File`."""
    return [Path(file) for file in files or []]


def _place(paths: Sequence[str], chosen: str | None) -> int | None:
    return None if chosen is None else paths.index(chosen)


def _whole(path: Path, box: Box | None, corner: Corner | None) -> Image.Image | None:
    """The picture to click in; none for a file that cannot be read, which its remark says."""
    try:
        return picture_with_box(path, box, corner)
    except DatasetError:
        return None
