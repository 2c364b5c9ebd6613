"""Captions for pictures that have none, by a model of transformers that looks at them: BLIP or Florence-2.

They are written into files beside the pictures, where captions are read from, so that people can mend them. What
somebody wrote stays as it is.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..hub import asking, split_id
from ..images.photo import DatasetError, read_photo
from ..subject.atomic_write import atomic_write
from ..subject.errors import shown
from ..subject.hub_id import HUB_ID
from ..subject.user_file import user_path
from .crop_boxes import cropped
from .picture_folder import TrainingPicture

# What each kind of model (as its config calls it) is asked for.
TASKS = {"blip": None, "florence2": "<CAPTION>"}
MOST_TOKENS = 40


class Captioner:
    """Says what pictures show.

    Args:
        name: a folder of transformers, or an id on the Hub.

    Raises:
        DatasetError: it is none, or no model that writes captions here. HubError: the Hub does not give it.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        # Only who asks for captions waits for these.
        from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

        loading: AbstractContextManager[None]
        path, options = user_path(name), dict[str, Any]()
        if path.is_dir():
            source, loading = str(path), nullcontext()
        elif HUB_ID.fullmatch(name):
            source, options["revision"] = split_id(name)
            loading = asking(source, options["revision"])
        else:
            raise DatasetError(
                f"--caption_model: there is no folder {shown(name)}; expected that of a captioning model (BLIP, "
                "Florence-2), or its id on the Hub, such as Salesforce/blip-image-captioning-base"
            )
        try:
            with loading:
                kind = AutoConfig.from_pretrained(source, **options).model_type
                if kind in TASKS:
                    self.processor = AutoProcessor.from_pretrained(source, **options)
                    model = AutoModelForImageTextToText.from_pretrained(source, use_safetensors=True, **options)
        except DatasetError:
            raise
        except Exception as error:
            raise DatasetError(f"--caption_model: {shown(name)} cannot be loaded: {error}") from error
        if kind not in TASKS:
            raise DatasetError(
                f"--caption_model: {shown(name)} is a model of the kind {shown(kind)}; expected {' or '.join(TASKS)}"
            )
        self.task, self.model, self.device = TASKS[kind], model.eval(), device
        torch.nn.Module.to(model, device)

    @torch.no_grad()
    def caption(self, picture: TrainingPicture) -> str:
        """What the part of a picture that is used shows, on one line; may be empty. Raises DatasetError."""
        image = cropped(read_photo(picture.path).image, picture.box).convert("RGB")
        given = self.processor(images=image, text=self.task, return_tensors="pt").to(self.device)
        tokens = self.model.generate(**given, max_new_tokens=MOST_TOKENS, do_sample=False, num_beams=1)
        (text,) = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return " ".join(str(text).split())


def write_captions(
    pictures: Sequence[TrainingPicture],
    name: str,
    device: torch.device,
    say: Callable[[str], None],
    should_stop: Callable[[], bool] | None = None,
) -> int:
    """Write a caption beside each picture that has none: "1.jpg.txt" for "1.jpg".

    Args:
        name: of the model, see `Captioner`; it is loaded only if a picture lacks words.
        should_stop: asked before each picture; what is written until then stays.

    Returns:
        How many were written.

    Raises:
        DatasetError, HubError: see `Captioner`. OSError: a file cannot be written.
    """
    wordless = [picture for picture in pictures if picture.caption is None]
    if not wordless:
        return 0
    captioner, written = Captioner(name, device), 0
    for picture in wordless:
        if should_stop and should_stop():
            break
        file = caption_file(picture.path)
        if file.exists():  # a picture whose caption is no caption to those who read them: not ours to replace
            raise DatasetError(f"{file} is there and is not read as a caption; mend it, or take it away")
        if not (text := captioner.caption(picture)):
            say(f"{picture.path.name}: the model finds no words for it")
            continue
        with atomic_write(file) as opened:
            opened.write(f"{text}\n".encode())
        written += 1
        say(f"wrote {file.name}: {text}")
    return written


def caption_file(picture: Path) -> Path:
    """Where the words of a picture are written: two pictures of one stem have a file each."""
    return picture.with_name(f"{picture.name}.txt")
