"""Compiles `native.cpp` for the CPU at hand, once, and loads it: on Linux, where the CPU has AVX2 or AVX-512.

The library lies in the user's cache, named after what it was made from: source, compiler and flags. `CXX` chooses the
compiler; `COEFF_DIFFUSION_NATIVE=0` does without. It gets there only after it has been tried in a process of its own,
and is loaded only where its seal is right (`sealed_cache`). What is not right is made anew.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

from . import native_interface, sealed_cache
from .build_error import BuildError

SOURCE = Path(__file__).with_name("native.cpp")
HEADERS = sorted(SOURCE.parent.glob("native_*.h"))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
MACHINES = ("x86_64", "AMD64")
# By what PyTorch itself found out about the CPU. With narrower vectors than these the kernel is no faster than PyTorch.
CPU_FLAGS = {
    "AVX512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
    "AVX2": ["-mavx2", "-mfma"],
}
TIMEOUT = 120  # seconds
MOST = 16 * 1024 * 1024  # bytes of a library


def load() -> ctypes.CDLL | None:
    """The compiled kernel, from the cache or made now (a few seconds); None where it is not meant to be.

    Raises:
        BuildError: there is no compiler, it fails, or anything else goes wrong.
    """
    flags = flags_for(platform.machine(), torch.backends.cpu.get_cpu_capability())
    if os.environ.get("COEFF_DIFFUSION_NATIVE") == "0" or sys.platform != "linux" or flags is None:
        return None
    try:
        compiler = _compiler()
        return _library(compiler, flags, sealed_cache.folder() / f"recombined-attention-{_name(compiler, flags)}.so")
    except BuildError:
        raise
    except Exception as error:  # of any kind: attention needs none of this
        raise BuildError(str(error) or type(error).__name__) from error


def flags_for(machine: str, capability: str) -> list[str] | None:
    """What a compiler is told for a CPU.

    Args:
        machine: `platform.machine()`.
        capability: what PyTorch calls its vectors.

    Returns:
        None where the kernel is not compiled: flags of one kind of CPU are errors on another, ARM for one.
    """
    return [*FLAGS, *CPU_FLAGS[capability]] if machine in MACHINES and capability in CPU_FLAGS else None


def _compiler() -> str:
    found = next(filter(None, map(shutil.which, (os.environ.get("CXX") or COMPILERS[0], *COMPILERS))), None)
    if found is None:
        raise BuildError(f"no C++ compiler found ({', '.join(COMPILERS)})")
    return found


def _name(compiler: str, flags: list[str]) -> str:
    version = _run([compiler, "--version"], compiler)
    sources = [path.read_bytes() for path in (SOURCE, *HEADERS)]
    parts = [*sources, *map(os.fsencode, (compiler, version, *flags, str(_openmp()), torch.__version__))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _openmp() -> Path | None:
    """PyTorch's own OpenMP, whose threads the kernel shares: a second pool would fight with them for the cores."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return found[0] if found else None


def _library(compiler: str, flags: list[str], path: Path) -> ctypes.CDLL:
    if sealed_cache.read(path, MOST) is not None:
        with suppress(OSError, AttributeError):  # made beside other libraries than those of today
            return native_interface.open_library(str(path))
    _build(compiler, flags, path)
    return native_interface.open_library(str(path))


def _build(compiler: str, flags: list[str], library: Path) -> None:
    openmp = [str(path) for path in [_openmp()] if path]
    with tempfile.TemporaryDirectory(dir=library.parent, ignore_cleanup_errors=True) as folder:
        made, built = Path(folder) / "native.o", Path(folder) / "native.so"
        source = ["-fopenmp", "-I", str(HEADERS[0].parent), "-c", str(SOURCE)]
        _run([compiler, *flags, *source, "-o", str(made)], compiler)
        _run([compiler, "-shared", str(made), *(openmp or ["-fopenmp"]), "-o", str(built)], compiler)
        if not sys.executable or hasattr(sys, "frozen"):
            raise BuildError("there is no Python to try it with")
        _run([sys.executable, "-I", native_interface.__file__, str(built), *openmp], "a trial of what was compiled")
        sealed_cache.write(library, built.read_bytes())


def _run(command: list[str], name: str) -> str:
    """What a command prints.

    Raises:
        BuildError: it fails or takes too long; the message begins with `name`.
    """
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        encoding="utf-8", errors="backslashreplace",
    ) as process:  # fmt: skip
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except BaseException as error:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a compiler's parts hold its pipes open
            if isinstance(error, subprocess.TimeoutExpired):
                raise BuildError(f"{name} took more than {TIMEOUT} seconds") from error
            raise
    if process.returncode:
        lines = [line for line in errors.splitlines() if "error" in line.lower()]
        raise BuildError(f"{name} failed: {(lines or [f'exit status {process.returncode}'])[0]}")
    return output
