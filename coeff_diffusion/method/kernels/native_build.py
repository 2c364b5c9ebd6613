"""Compiles `native.cpp` for the CPU at hand, once, and loads it: on Linux, where the CPU has AVX2 or AVX-512.

The library lies in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`, folder `coeff-diffusion`), named after what it
was made from: source, compiler and flags. `CXX` chooses the compiler; `COEFF_DIFFUSION_NATIVE=0` does without.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = sorted(SOURCE.parent.glob("native_*.h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
# By what PyTorch itself found out about the CPU. With narrower vectors than these the kernel is no faster than PyTorch.
CPU_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}
TIMEOUT = 120  # seconds


class BuildError(Exception):
    """The kernel could not be compiled or loaded."""


def load() -> ctypes.CDLL | None:
    """The compiled kernel, from the cache or made now (a few seconds); None where it is not meant to be.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    if os.environ.get("COEFF_DIFFUSION_NATIVE") == "0" or sys.platform != "linux" or _cpu() not in CPU_FLAGS:
        return None
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or COMPILERS[0], *COMPILERS))), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler found ({', '.join(COMPILERS)})")
    try:
        library = _cache() / f"recombined-attention-{_name(compiler)}.so"
        if not library.exists():
            _build(compiler, library)
        return ctypes.CDLL(str(library))
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody knows where home is
        raise BuildError(str(error)) from error


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coeff-diffusion"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise BuildError(f"others than you may write to {folder}: code is not loaded from there")
    return folder


def _name(compiler: str) -> str:
    version = _run([compiler, "--version"])
    sources = [path.read_text() for path in (SOURCE, *HEADERS)]
    parts = [*sources, compiler, version, *_flags(), str(_openmp()), torch.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu() -> str:
    return torch.backends.cpu.get_cpu_capability()


def _flags() -> list[str]:
    return [*FLAGS, *CPU_FLAGS[_cpu()]]


def _openmp() -> Path | None:
    """PyTorch's own OpenMP, whose threads the kernel shares: a second pool would fight with them for the cores."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return found[0] if found else None


def _build(compiler: str, library: Path) -> None:
    openmp = _openmp()
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made, built = Path(folder) / "native.o", Path(folder) / "native.so"
        _run([compiler, *_flags(), "-fopenmp", "-I", str(HEADERS[0].parent), "-c", str(SOURCE), "-o", str(made)])
        _run([compiler, "-shared", str(made), str(openmp) if openmp else "-fopenmp", "-o", str(built)])
        built.replace(library)


def _run(command: list[str]) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT).stdout
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "error" in line] or [f"exit status {error.returncode}"]
        raise BuildError(f"{command[0]} failed: {lines[0]}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"{command[0]} took more than {TIMEOUT} seconds") from error
