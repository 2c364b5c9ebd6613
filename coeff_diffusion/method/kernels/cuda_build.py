"""Compiles `cuda_recombine.cu` and `cuda_row_stats.cu` for the GPU at hand, for each kind of layer, and launches them.

NVRTC, the compiler, comes with PyTorch; the driver's own interface loads and launches what it makes. Compiled kernels
lie in the user's cache like the CPU's, see `sealed_cache`.

Everything here raises `BuildError` alone.
"""

import ctypes
import functools
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import sealed_cache
from .build_error import BuildError

INSTRUCTIONS, PARTS = "cuda_instructions.h", "cuda_parts.h"
KERNELS = {"recombine": "cuda_recombine.cu", "row_stats": "cuda_row_stats.cu"}
MOST = 4 * 1024 * 1024  # bytes of a compiled kernel
SHARED_MEMORY_OF_A_BLOCK = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
MOST_SHARED_MEMORY = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
PARAMETERS, PARAMETERS_SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_...
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: PyTorch has done nothing on this thread so far


class Kernel(NamedTuple):
    """A compiled kernel, loaded on one device."""

    function: ctypes.c_void_p
    threads: int  # of a block
    shared_memory: int  # of a block, in bytes

    def launch(self, blocks: tuple[int, int, int], arguments: bytes, stream: int) -> None:
        """Run it on the current device.

        Args:
            blocks: of the axes of the grid.
            arguments: the kernel's only argument, a structure.
            stream: as `torch.cuda.Stream.cuda_stream` has it.

        Raises:
            BuildError: the driver refuses.
        """
        buffer = ctypes.create_string_buffer(arguments, len(arguments))
        size = ctypes.c_size_t(len(arguments))
        extra = (ctypes.c_void_p * 5)(
            PARAMETERS, ctypes.addressof(buffer), PARAMETERS_SIZE, ctypes.addressof(size), END
        )
        launch = functools.partial(
            _driver().cuLaunchKernel,
            self.function, *blocks, self.threads, 1, 1, self.shared_memory, ctypes.c_void_p(stream), None, extra,
        )  # fmt: skip
        status = launch()
        if status == NO_CONTEXT:
            torch.cuda.synchronize()
            status = launch()
        _check(status, "launching a kernel")


def shared_memory_of(device: torch.device) -> int:
    """Bytes of shared memory that a block may have."""
    found = ctypes.c_int()
    _check(_driver().cuDeviceGetAttribute(ctypes.byref(found), SHARED_MEMORY_OF_A_BLOCK, _index(device)), "a device")
    return found.value


def build(name: str, constants: Mapping[str, int], threads: int, shared_memory: int, device: torch.device) -> Kernel:
    """The kernel for these constants, from the cache or made now (about a second), loaded on the device.

    Args:
        name: one of `KERNELS`.
        constants: of its source.
        threads: of a block.
        shared_memory: of a block, in bytes.
        device: the GPU.

    Raises:
        BuildError: it cannot be had.
    """
    try:
        binary = _binary(name, constants, torch.cuda.get_device_capability(device))
        with torch.cuda.device(device):
            torch.cuda.synchronize()  # makes the device's context that of this thread
            return Kernel(_load(name, binary, shared_memory), threads, shared_memory)
    except BuildError:
        raise
    except Exception as error:  # of any kind: attention needs none of this
        raise BuildError(str(error) or type(error).__name__) from error


def source(*files: str) -> bytes:
    """Of files beside this one, one after another."""
    return b"".join(Path(__file__).with_name(file).read_bytes() for file in files)


def compiled(name: str, constants: Mapping[str, int], architecture: str, nvrtc: ctypes.CDLL | None = None) -> bytes:
    """Machine code of one of `KERNELS` for an architecture, "sm_90" for one; PyTorch's NVRTC unless one is given."""
    nvrtc = nvrtc or _nvrtc()
    text = source(INSTRUCTIONS, PARTS, KERNELS[name])
    options = [f"--gpu-architecture={architecture}", "--std=c++17", *(f"-D{k}={v}" for k, v in constants.items())]
    program = ctypes.c_void_p()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, KERNELS[name].encode(), 0, None, None), "NVRTC")
    try:
        status = nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options))
        )
        if status:
            log = _text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).decode(errors="replace")
            lines = [line for line in log.splitlines() if "error" in line.lower()]
            raise BuildError(f"NVRTC failed for {architecture}: {(lines or [f'status {status}'])[0]}")
        return _text(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _text(size_of: Any, get: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)), "NVRTC")
    found = ctypes.create_string_buffer(size.value)
    _check(get(program, found), "NVRTC")
    return found.raw


def _binary(name: str, constants: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    architecture = "sm_{}{}".format(*capability)
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(_nvrtc().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "NVRTC")
    what = [repr(sorted(constants.items())), architecture, f"{major.value}.{minor.value}"]
    parts = [source(INSTRUCTIONS, PARTS, KERNELS[name]), *map(str.encode, what)]
    file = f"recombined-attention-{hashlib.sha256(bytes(1).join(parts)).hexdigest()[:16]}.cubin"
    return sealed_cache.kept(file, MOST, lambda: compiled(name, constants, architecture))


def _load(name: str, binary: bytes, shared_memory: int) -> ctypes.c_void_p:
    driver, module, function = _driver(), ctypes.c_void_p(), ctypes.c_void_p()
    _check(driver.cuModuleLoadData(ctypes.byref(module), binary), "loading a kernel")
    _check(driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode()), "finding the kernel")
    _check(driver.cuFuncSetAttribute(function, MOST_SHARED_MEMORY, shared_memory), "asking for shared memory")
    return function


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _check(status: int, what: str) -> None:
    if status:
        raise BuildError(f"{what} failed with status {status}")


@functools.cache
def _nvrtc() -> ctypes.CDLL:
    major = str(torch.version.cuda).split(".")[0]
    return _library(f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}")


@functools.cache
def _driver() -> ctypes.CDLL:
    return _library("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _library(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise BuildError(f"{name} cannot be loaded: {error}") from error
