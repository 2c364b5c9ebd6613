"""What a training draws on the way, beside the pictures it learns from: from step 0 to the latest, the largest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
from PIL import Image

from ..service import StudioService, TrainingJob
from ..service.taught_pictures import taught_pictures

SHOWN = 12  # pictures of earlier previews; of more, some are left out, evenly
# On a phone one below the other. Thumbnails of one size, however many there are, below the label, with words below.
CSS = """
#train-shown { align-items: flex-start; }
@media (max-width: 640px) { #train-shown { flex-direction: column; } #train-shown > * { width: 100%; } }
#train-shown .grid-wrap { height: auto; min-height: 0; max-height: 30rem; padding-top: 2.6rem; }
#train-shown .grid-container { grid-template-columns: repeat(auto-fill, minmax(72px, 1fr)); grid-template-rows: none;
  grid-auto-rows: auto; align-items: start; }
#train-previews .grid-container { grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); }
#train-shown .thumbnail-item { display: flex; flex-direction: column; height: auto; aspect-ratio: auto; }
#train-shown .thumbnail-item img { aspect-ratio: 1; height: auto; }
#train-shown .caption-label { position: static; width: 100%; max-width: none; border: 0;
  white-space: normal; overflow-wrap: anywhere; text-align: start; }
"""
News = dict[Any, Any]
Item = TypeVar("Item")


class Previews:
    """Three galleries: the subject's own pictures, the previews from step 0 on, and the latest one."""

    def __init__(self, service: StudioService) -> None:
        self.service = service
        with gr.Row(elem_id="train-shown"):
            self.own = _gallery("train-own", scale=2)
            self.earlier = _gallery("train-earlier", scale=2)
            self.latest = _gallery("train-previews", scale=4)
        self.outputs = [self.own, self.earlier, self.latest]

    def pictures(self, job: TrainingJob) -> News:
        """What it learns from. Who shares a page with others need not have them see the photographs."""
        alone = self.service.import_export.folders  # nobody else can reach the page
        found = taught_pictures(job, self.service.training_queue.resolution) if alone else ()
        return {self.own: gr.Gallery([(one, "") for one in found], label="Its pictures", visible=bool(found))}

    def previews(self, job: TrainingJob) -> News:
        """What was drawn of it so far."""
        drawn = [(path, step) for step, paths in job.previews.items() for path in paths]
        newest = max(job.previews, default=0)
        earlier = _opened(spread([(path, step) for path, step in drawn if step != newest], SHOWN))
        latest = _opened([(path, step) for path, step in drawn if step == newest])
        return {
            self.earlier: gr.Gallery(earlier, label="From step 0 on", visible=bool(earlier)),
            self.latest: gr.Gallery(latest, label="Latest preview", visible=bool(latest)),
        }


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many of them, evenly, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _opened(drawn: Sequence[tuple[Path, int]]) -> list[tuple[Image.Image, str]]:
    """Previews with their steps, as far as they are there: the subject may have been renamed or thrown away since."""
    pictures = []
    for path, step in drawn:
        if path.is_file():
            with Image.open(path) as image:
                pictures.append((image.convert("RGB"), f"step {step}"))
    return pictures


def _gallery(elem_id: str, scale: int) -> gr.Gallery:
    """Pictures of which each can be looked at large; out of sight until there are some."""
    return gr.Gallery(
        visible=False,
        format="png",
        columns=None,
        height="auto",
        object_fit="contain",
        interactive=False,
        buttons=["download", "fullscreen"],
        scale=scale,
        min_width=120,
        elem_id=elem_id,
    )
