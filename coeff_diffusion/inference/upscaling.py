"""Making a drawn picture larger: by Lanczos, or by a network that others trained for it (through spandrel)."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..subject.file_kind import SAFETENSORS, kind_of_file
from ..subject.user_file import user_path
from ..subject.weight_sample import spread
from .request import StudioError

LANCZOS = "Lanczos"


@dataclass(frozen=True)
class Upscaler:
    """What makes pictures larger.

    Attributes:
        name: as pictures record it.
        digits: 12 hex digits that tell a network's weights from any other's; empty for Lanczos.
        model: spandrel's descriptor of a network; None for Lanczos.
    """

    name: str = LANCZOS
    digits: str = ""
    model: Any = field(default=None, compare=False)

    def enlarged(self, image: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture at this width and height; what a network makes of it is brought to them by Lanczos."""
        if image.size == size:
            return image
        found = image
        if self.model is not None:
            values = torch.from_numpy(np.array(image.convert("RGB"))).to(self.model.device, self.model.dtype)
            with torch.no_grad():
                larger = self.model(values.permute(2, 0, 1)[None] / 255)[0]  # [3, h, w]
            rounded = (larger.float().clamp(0, 1) * 255).round().to("cpu", torch.uint8)
            found = Image.fromarray(rounded.permute(1, 2, 0).numpy())
        return found if found.size == size else found.resize(size, Image.Resampling.LANCZOS)


def load_upscaler(file: str | Path, device: torch.device) -> Upscaler:
    """A network for larger pictures from a `.safetensors` file (RealESRGAN and others that spandrel knows).

    Raises:
        StudioError: spandrel is not installed, or the file is no such network. Pickled files are never opened.
    """
    path = user_path(file)
    if (kind := kind_of_file(path, StudioError)) is not SAFETENSORS:
        raise StudioError(f"{path} is {kind.name}; expected an upscaler as a .safetensors file")
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ModuleNotFoundError as error:
        raise StudioError(f'--upscaler needs {error.name}; pip install "coeff-diffusion[upscale]"') from error
    try:
        model = ModelLoader(device).load_from_state_dict(load_file(path))
    except (UnsupportedModelError, SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise StudioError(f"{path} is no upscaler that spandrel knows: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(model, ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise StudioError(f"{path} is a network of another kind ({model.purpose}); expected one that enlarges pictures")
    return Upscaler(path.stem, _digits(model.model), model.eval())


def _digits(network: torch.nn.Module) -> str:
    numbers = [[list(weight.shape), spread(weight, 8)] for weight in network.parameters()]
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:12]
