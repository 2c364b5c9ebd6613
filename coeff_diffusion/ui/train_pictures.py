"""The pictures that are dropped for a training: each as training sees it, what is wrong with it, what it shows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ..service import StudioService
from ..service.thumbnails import greyed, stand_in
from ..training.captions import SUFFIXES, TABLES
from .common import QUIET, or_refusal, status_line

Values = dict[Any, Any]
CSS = """
#train-crops .grid-wrap { height: auto; min-height: 0; max-height: 24rem; padding-top: 2.6rem; }
#train-crops .grid-container { grid-template-columns: repeat(auto-fill, minmax(90px, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; align-items: start; }
#train-crops .thumbnail-item { display: flex; flex-direction: column; height: auto; aspect-ratio: auto; }
#train-crops .thumbnail-item img { aspect-ratio: 1; height: auto; }
#train-crops .caption-label { position: static; width: 100%; max-width: none; border: 0; opacity: 1;
  white-space: normal; overflow-wrap: anywhere; text-align: start; }
#train-remarks p { margin: 0 0 var(--spacing-sm); overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Looked:
    """What a browser knows of its pictures.

    Attributes:
        paths: in the order they are shown in.
        captions: what their files say.
        written: what was written on the page instead.
        chosen: the one that is looked at.
    """

    paths: tuple[str, ...] = ()
    captions: dict[str, str] = field(default_factory=dict)
    written: dict[str, str] = field(default_factory=dict)
    chosen: str | None = None

    def with_words(self, text: str | None) -> dict[str, str]:
        """What is written of all, where this stands in the field of the chosen one now."""
        if self.chosen is None or (text or "") == self.words(self.chosen):
            return self.written
        return {**self.written, self.chosen: text or ""}

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
            label="What training sees of them; pick one to say what it shows, or to take it out",
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
        with gr.Column(visible=False, elem_id="train-picture") as self.one:
            self.caption = gr.Textbox(label="Caption", max_lines=6, elem_id="train-caption")
            self.out = gr.Button("Take it out", size="sm", elem_id="train-take-out")
        self.looked = gr.State(Looked())

    def inputs(self) -> list[Any]:
        """What `given` and `captions` read."""
        return [self.files, self.caption, self.looked]

    def given(self, values: Values) -> list[Path]:
        """The files."""
        return paths_of(values[self.files])

    def captions(self, values: Values) -> dict[Path, str]:
        """What was written on the page."""
        return {Path(path): text for path, text in values[self.looked].with_words(values[self.caption]).items()}

    def wire(self, crop: gr.Checkbox, seed: gr.Number, class_word: gr.Textbox) -> None:
        """Look at pictures as they come and go, and at the one that is picked."""
        editor = [self.looked, self.one, self.caption, self.out]

        def look(
            files: list[str] | None, crop: bool, seed: int | None, word: str | None, text: str | None, seen: Looked
        ) -> Values:
            check = self.service.training_queue.check
            found = or_refusal(check, paths_of(files), crop, seed or 0, word or "")
            shown = [
                (found.crops.get(path) or greyed(stand_in()), " · ".join([path.name, *about]))
                for path, about in found.about.items()
            ]
            paths = tuple(map(str, found.about))
            captions = {str(path): words for path, words in found.captions.items()}
            written = {path: words for path, words in seen.with_words(text).items() if path in paths}
            chosen = seen.chosen if seen.chosen in paths else None
            return {
                self.crops: gr.Gallery(shown, visible=bool(shown), selected_index=_place(paths, chosen)),
                self.remarks: status_line(*found.refused, *found.notes),
                **self._edit(Looked(paths, captions, written, chosen)),
            }

        def pick(event: gr.SelectData, text: str | None, seen: Looked) -> Values:
            return self._edit(Looked(seen.paths, seen.captions, seen.with_words(text), seen.paths[event.index]))

        def take_out(files: list[str] | None, seen: Looked) -> list[str] | None:
            return [file for file in files or [] if file != seen.chosen] or None

        gr.on(
            [self.files.change, crop.input],
            look,
            [self.files, crop, seed, class_word, self.caption, self.looked],
            [self.crops, self.remarks, *editor],
            show_progress_on=[self.crops],
            api_visibility="private",
        )
        self.crops.select(pick, [self.caption, self.looked], editor, **QUIET)
        self.out.click(take_out, [self.files, self.looked], self.files, **QUIET)

    def _edit(self, looked: Looked) -> Values:
        """The picture that is looked at, and the words about it."""
        news: Values = {self.looked: looked, self.one: gr.Column(visible=looked.chosen is not None)}
        if looked.chosen is None:
            return news | {self.caption: ""}
        name = Path(looked.chosen).name
        return news | {
            self.caption: gr.Textbox(
                looked.words(looked.chosen),
                label=f"Caption of {name}",
                info="What it shows; the trigger takes the class word's place. Empty: the prompt of all without words",
            ),
            self.out: gr.Button(f"Take {name} out"),
        }


def paths_of(files: Sequence[str] | None) -> list[Path]:
    """The files of a `gr.File`."""
    return [Path(file) for file in files or []]


def _place(paths: Sequence[str], chosen: str | None) -> int | None:
    return None if chosen is None else paths.index(chosen)
