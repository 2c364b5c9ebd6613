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
TABLES = ("token_embedding.weight", "position_embedding.weight")  # of two dimensions, and no linear layers


def bytes_in_memory(name: str, dtype: torch.dtype, revision: str | None = None, quantization: str = "no") -> int | None:
    """Bytes of a base's weights once they are loaded; None for one of the Hub that is not on this computer yet.

    Args:
        dtype: of what has no other.
        quantization: see `quantize`; while a base is read it takes as much as with "no".

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
    rounded = quantization != "no"
    return sum(
        math.prod(shape) * (1 if rounded and _is_linear(tensor, shape) else dtype.itemsize)
        for tensor, shape in _shapes(files)
    )


def free_memory(device: torch.device) -> int:
    """Bytes that are free: on a GPU of CUDA its own memory, anywhere else the computer's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)


def _is_linear(tensor: str, shape: list[int]) -> bool:
    """Whether a tensor, called as in a folder or in a checkpoint, is the weight of a linear layer."""
    return len(shape) == 2 and tensor.endswith("weight") and not tensor.endswith(TABLES)


def _shapes(files: Iterable[Path]) -> list[tuple[str, list[int]]]:
    """The name and the shape of every tensor that is loaded."""
    shapes = []
    for path in files:
        check_file(path, error=BaseModelError)
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in list(file.keys()) if not name.startswith(EMA)]
                shapes += [(name, file.get_slice(name).get_shape()) for name in names]
        except (SafetensorError, OSError) as error:
            raise BaseModelError(f"{str(path)!r} is not a readable .safetensors file: {one_line(error)}") from error
    return shapes
