"""The pictures that are dropped for a training: each as training sees it, what is wrong with it, what it shows."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..images.photo import DatasetError
from ..service import StudioService
from ..service.crop_editor import Corner, corner_at, picture_with_box, write_box
from ..service.picture_check import PictureCheck
from ..service.thumbnails import greyed, stand_in
from ..training.captions import SUFFIXES, TABLES
from ..training.crop_boxes import Box
from .common import QUIET, REFUSALS, or_refusal, refusal, status_line
from .looked import Looked
from .paint import canvas, paint_editor

Values = dict[Any, Any]
CSS = """
#train-crops .grid-wrap { height: auto; min-height: 0; max-height: 24rem; padding-top: 2.6rem; }
#train-crops .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; align-items: start; }
#train-crops .thumbnail-item { display: flex; flex-direction: column; height: auto; aspect-ratio: auto; }
#train-crops .thumbnail-item img { aspect-ratio: 1; height: auto; }
#train-crops .caption-label { position: static; width: 100%; max-width: none; border: 0;
  white-space: normal; overflow-wrap: anywhere; text-align: start; }
#train-remarks p, #train-captions p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
"""


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

        def checked(values: Values, seen: Looked) -> Values:
            boxes = {Path(path): box for path, box in seen.boxes.items()}
            given = paths_of(values[self.files]), values[crop], values[seed] or 0, values[class_word] or ""
            return self._shown(or_refusal(self.service.training_queue.check, *given, boxes), seen)

        def look(values: Values) -> Values:
            return checked(values, self._seen(values))

        def click(values: Values, event: gr.SelectData) -> Values:
            seen = self._seen(values)
            assert seen.chosen is not None
            seen = or_refusal(seen.clicked, or_refusal(corner_at, Path(seen.chosen), event.index))
            return checked(values, seen) if seen.corner is None else self._edit(seen)

        def write(values: Values) -> Values:
            seen = self._seen(values)
            return checked(values, replace(seen, boxes=or_refusal(seen.with_box, values[self.box]), corner=None))

        asked: set[Any] = {self.files, crop, seed, class_word, self.caption, self.looked}
        editor = [self.looked, self.one, self.caption, self.whole, self.box, self.painting, self.out]
        outputs = [self.crops, self.remarks, self.told, self.write, *editor]
        shown_on: dict[str, Any] = {"show_progress_on": [self.crops], "api_visibility": "private"}
        gr.on([self.files.change, crop.input], look, asked, outputs, **shown_on)
        self.whole.select(click, asked, outputs, **shown_on)
        self.box.submit(write, {*asked, self.box}, outputs, **shown_on)
        self.crops.select(self._pick, {self.caption, self.box, self.paint, self.looked}, editor, **QUIET)
        hidden = [self.looked, self.painting]
        self.mask.click(self._paint, {self.looked}, [*hidden, self.paint], **QUIET)
        self.keep.click(self._keep, {self.paint, self.looked}, [*hidden, self.told], **QUIET)
        self.write.click(self._write_captions, {self.caption, self.looked}, [self.told, *editor], **QUIET)
        self.out.click(self._take_out, {self.files, self.looked}, self.files, **QUIET)

    def _seen(self, values: Values) -> Looked:
        """What is known, with what stands in the field for the caption."""
        seen: Looked = values[self.looked]
        return replace(seen, written=seen.with_words(values[self.caption]))

    def _shown(self, found: PictureCheck, seen: Looked) -> Values:
        """All pictures as training sees them, what is wrong with them, and the one that is looked at."""
        shown = [
            (found.crops.get(path) or greyed(stand_in()), " · ".join([path.name, *about]))
            for path, about in found.about.items()
        ]
        seen = seen.holding([*map(str, found.about)], {str(path): words for path, words in found.captions.items()})
        place = None if seen.chosen is None else seen.paths.index(seen.chosen)
        return {
            self.crops: gr.Gallery(shown, visible=bool(shown), selected_index=place),
            self.remarks: status_line(*found.refused, *found.notes),
            self.told: "",
            self.write: gr.Button(visible=bool(shown) and self.service.caption_writer.name is not None),
            **self._edit(seen),
        }

    def _pick(self, values: Values, event: gr.SelectData) -> Values:
        seen = self._seen(values)
        boxes, masks = or_refusal(seen.with_box, values[self.box]), seen.with_mask(values[self.paint])
        chosen = seen.paths[event.index]
        return self._edit(replace(seen, chosen=chosen, boxes=boxes, corner=None, masks=masks, painting=None))

    def _paint(self, values: Values) -> Values:
        seen: Looked = values[self.looked]
        assert seen.chosen is not None
        return {
            self.looked: replace(seen, painting=seen.chosen),
            self.painting: gr.Column(visible=True),
            self.paint: canvas(_whole(Path(seen.chosen), None, None)),
        }

    def _keep(self, values: Values) -> Values:
        """Does not fill the editor that it reads: gradio's would send what it holds without end."""
        seen: Looked = values[self.looked]
        masks = seen.with_mask(values[self.paint])
        return {
            self.looked: replace(seen, masks=masks, painting=None),
            self.painting: gr.Column(visible=False),
            self.told: status_line(f"{len(masks)} of {len(seen.paths)} pictures have a painted mask."),
        }

    def _write_captions(self, values: Values) -> Iterator[Values]:
        """Only of pictures that have no words; what is written can be mended before the training starts."""
        seen = self._seen(values)
        written, boxes = dict(seen.written), {Path(path): box for path, box in seen.boxes.items()}
        wordless = [Path(path) for path in seen.paths if not seen.words(path)]
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

    def _take_out(self, values: Values) -> list[str] | None:
        return [file for file in values[self.files] or [] if file != values[self.looked].chosen] or None

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


def _whole(path: Path, box: Box | None, corner: Corner | None) -> Image.Image | None:
    """The picture to click in; none for a file that cannot be read, which its remark says."""
    try:
        return picture_with_box(path, box, corner)
    except DatasetError:
        return None
