"""Drawing from a picture, or held to one: diffusers' own image to image and ControlNets, over the base's pipeline.

They share its networks and read prompts as it does.

Legend: P pictures of a batch; C, h, w channels and size of the latents; F pixels of a side that one of them stands for.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from PIL import Image, ImageFilter
from torch import Tensor

from ..families.controlnets import ControlNet
from ..images.drawing_settings import SETTINGS
from ..images.shapes import bucket_sizes, nearest_size
from ..images.start_picture import StartPicture
from .request import DrawRequest, StudioError

MOST_NATIVE = 2  # sides from half of those that the base was trained at to twice stay as they are


def pipeline_for(pipe: Any, request: DrawRequest, controlnet: ControlNet | None = None) -> Any:
    """The pipeline that draws: the base's own, or one of image to image or of ControlNets that shares all of its parts.

    That one reads prompts through the base's own, to which subjects belong.

    Args:
        controlnet: that of the request.

    Raises:
        StudioError: diffusers has no such pipeline for bases of this kind.
    """
    if request.start is None and request.control is None:
        return pipe
    import diffusers  # the automatic pipelines load the code of every kind of pipeline

    auto = diffusers.AutoPipelineForText2Image if request.start is None else diffusers.AutoPipelineForImage2Image
    more = {} if controlnet is None else {"controlnet": controlnet.model}
    try:
        sibling = auto.from_pipe(pipe, **more)
    except ValueError as error:
        cannot = "start from a picture" if request.control is None else "be held to a picture by a ControlNet"
        raise StudioError(f"a {type(pipe).__name__} cannot {cannot}: {error}") from error
    sibling.encode_prompt, sibling.maybe_free_model_hooks = pipe.encode_prompt, pipe.maybe_free_model_hooks
    sibling.set_progress_bar_config(disable=True)
    return sibling


def taken_by(pipe: Any) -> set[str]:
    """The arguments of a drawing call of this pipeline."""
    return set(inspect.signature(type(pipe).__call__).parameters)


def picture_options(requests: Sequence[DrawRequest]) -> dict[str, Any]:
    """What a drawing call gets of the pictures to start from and to be held to; nothing where there are none."""
    first, found = requests[0], dict[str, Any]()
    if first.control is not None:
        found |= {one.name: getattr(first, one.name) for one in SETTINGS.values() if one.of == "control"}
        found["image" if first.start is None else "control_image"] = [first.control.image] * len(requests)
    if first.start is not None:
        images = [request.start.image for request in requests if request.start is not None]  # each has one, or none
        found |= {"image": images, "strength": first.denoising_strength}
    return found


class Inpainting:
    """Keeps what is not to change as it was, step by step, as diffusers' inpainting does with bases of four channels.

    Args:
        scheduler: of this drawing alone; watched to learn what the pipeline makes of the picture.
        factor: F.
    """

    def __init__(self, scheduler: SchedulerMixin, mask: Image.Image, factor: int) -> None:
        self.scheduler, self.anew = scheduler, _cells(mask, factor)  # [h, w]
        self.begun: tuple[Tensor, Tensor] | None = None  # latents of the picture, and the noise on it, [P, C, h, w]
        self._add_noise = scheduler.add_noise
        scheduler.add_noise = self._watched

    def _watched(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        if self.begun is None:
            self.begun = latents, noise
        found: Tensor = self._add_noise(latents, noise, timesteps)
        return found

    def kept(self, latents: Tensor, step: int, total: int) -> Tensor:
        """The latents after so many of the steps, `[P, C, h, w]`, with the picture's own where nothing is to change."""
        assert self.begun is not None
        own, noise = self.begun
        if step < total:
            timesteps = self.scheduler.timesteps
            own = self._add_noise(own, noise, timesteps[len(timesteps) - total + step :][:1])
        return torch.where(self.anew.to(latents.device), latents, own.to(latents.dtype))


def finished(image: Image.Image, request: DrawRequest) -> Image.Image:
    """What was drawn, and around it, pixel by pixel, what was to stay."""
    if request.start is None or request.start.mask is None:
        return image
    mask = request.start.mask.filter(ImageFilter.GaussianBlur(request.mask_blur or 0))
    return Image.composite(image, request.start.image, mask)


def size_from(start: StartPicture, native: tuple[int, int], multiple: int) -> tuple[int, int]:
    """The size to draw at where none is given: the picture's own where the base can, else the nearest shape."""
    size = start.image.size
    near = all(one <= MOST_NATIVE * side <= MOST_NATIVE**2 * one for side, one in zip(size, native, strict=True))
    if near and not any(side % multiple for side in size):
        return size
    return nearest_size(size, bucket_sizes(min(native), multiple))


def _cells(mask: Image.Image, factor: int) -> Tensor:
    """Whether each of the latents is drawn anew, bool `[h, w]`: where any pixel of its F x F is to change."""
    values = np.asarray(mask)
    high, wide = (side // factor for side in values.shape)
    return torch.from_numpy(values.reshape(high, factor, wide, factor).max((1, 3)) > 0)
