"""`python memory_of_reading.py FOLDER`: bytes of memory that it takes to read each picture there, as JSON by name.

Each is read in a fork of this process, which has imported all there is to import. Linux only: the peak is the kernel's.
"""

import ctypes
import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.generation_info import PictureError
from coeff_diffusion.sources.image_card import extract


def memory(key: str) -> int:
    """`VmRSS`, or `VmHWM`, its highest value since the last reset."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{key}:")) * 1024


def read(path: Path) -> None:
    for call in (Coefficients.load, extract):
        with suppress(CoefficientsError):
            call(path)
    with suppress(PictureError):
        read_parameters(path)


def taken(path: Path) -> int:
    """The peak of memory while a file is read, above what was taken before."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).malloc_trim(0)  # what is free already would be used without being seen
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        read(path)
        os.write(writer, str(memory("VmHWM") - before).encode())
        os._exit(0)
    os.close(writer)
    found = os.read(reader, 100)
    os.close(reader)
    _, status = os.wait()
    assert status == 0
    return int(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    paths = sorted(Path(sys.argv[1]).iterdir())
    for name in ("coeff_diffusion.sources.qr_code", "zxingcpp"):
        with suppress(ModuleNotFoundError):
            importlib.import_module(name)
    read(paths[0])
    print(json.dumps({path.stem: taken(path) for path in paths}))
