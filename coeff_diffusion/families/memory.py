"""What memory a base takes, told from the headers of its files before it is loaded, and how much there is."""

import math
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open

from ..base import embedded_path
from ..subject.user_file import check_file, user_path
from .checkpoints import check_checkpoint
from .errors import BaseModelError, one_line
from .family import AUTOENCODER
from .folders import INDEX, weight_files
from .load import kind_of_base

EMA = "model_ema."  # how the tensors of a checkpoint begin that are not loaded


def bytes_in_memory(name: str, dtype: torch.dtype, revision: str | None = None) -> int | None:
    """Bytes of a base's weights once they are loaded; None for one of the Hub that is not on this computer yet.

    Raises:
        BaseModelError: it is no base, or a file of its weights cannot be read.
    """
    match kind_of_base(name):
        case "checkpoint":
            path = user_path(name)
            check_checkpoint(path, lacks=(AUTOENCODER,))
            files = [path]
        case "folder":
            files = weight_files(user_path(name), name)
        case "embedded":
            files = weight_files(embedded_path(), name)
        case "hub":
            index = try_to_load_from_cache(name, INDEX, revision=revision)
            if not isinstance(index, str):
                return None
            files = weight_files(Path(index).parent, name)
    return sum(map(math.prod, _shapes(files))) * dtype.itemsize


def free_memory(device: torch.device) -> int:
    """Bytes that are free: on a GPU of CUDA its own memory, anywhere else the computer's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _shapes(files: Iterable[Path]) -> list[list[int]]:
    """Of every tensor that is loaded."""
    shapes = []
    for path in files:
        check_file(path, error=BaseModelError)
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in list(file.keys()) if not name.startswith(EMA)]
                shapes += [file.get_slice(name).get_shape() for name in names]
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error
    return shapes
