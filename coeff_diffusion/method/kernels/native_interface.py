"""The functions of `native.cpp` for ctypes. As a script this file tries a library, in a process that may crash of it:
`python native_interface.py library.so [the OpenMP that it shares]`.

Needs the standard library alone, so that a trial takes no longer than Python does to start.
"""

import ctypes
import math
import sys


class Shape(ctypes.Structure):
    """Sizes of a call, as `native_plan.h` has them."""

    _fields_ = [(name, ctypes.c_int64) for name in ("batch", "heads", "queries", "keys", "channels", "value_channels")]


class View(ctypes.Structure):
    """A tensor `[B, H, rows, channels]` whose channels lie side by side; strides in floats."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "head", "row"))]


def open_library(path: str) -> ctypes.CDLL:
    """Load a library and tell ctypes what its functions take; structures go by reference.

    Raises:
        OSError: it cannot be loaded.
        AttributeError: it is a library of something else.
    """
    kernel = ctypes.CDLL(path)
    number, data, shape, view = ctypes.c_int64, ctypes.c_void_p, ctypes.POINTER(Shape), ctypes.POINTER(View)
    for room in (kernel.coeff_forward_room, kernel.coeff_backward_room):
        room.argtypes, room.restype = [shape, number], number
    kernel.coeff_forward.argtypes = [
        shape, ctypes.c_float, *[view] * 3, data, number, *[view] * 2, data, data, number,
    ]  # fmt: skip
    kernel.coeff_backward.argtypes = [
        shape, ctypes.c_float, *[view] * 4, data, number, view, data, *[view] * 3, data, data, number,
    ]  # fmt: skip
    kernel.coeff_forward.restype = kernel.coeff_backward.restype = None
    return kernel


def trial(kernel: ctypes.CDLL) -> bool:
    """Whether forward and backward of a small layer end, and maps sum to one: values are one, so outputs show it."""
    heads, rows, channels, threads = 3, 45, 12, 2
    size = heads * rows * channels
    shape = Shape(1, heads, rows, rows, channels, channels)

    def view(numbers: "ctypes.Array[ctypes.c_float]") -> View:
        return View(ctypes.addressof(numbers), size, rows * channels, channels)

    def floats(count: int) -> "ctypes.Array[ctypes.c_float]":
        return (ctypes.c_float * count)()

    states, ones, output, *grads = (floats(size) for _ in range(6))
    coeff, weight_grad, saved = floats(heads * heads), floats(heads * heads), floats(heads * rows * 2)
    states[:] = [math.sin(i * i) for i in range(size)]
    ones[:] = [1.0] * size
    coeff[:] = [0.25 * i for i in range(heads * heads)]
    room = floats(max(ask(shape, threads) for ask in (kernel.coeff_forward_room, kernel.coeff_backward_room)))
    none = View(None, 0, 0, 0)
    inputs = view(states), view(states), view(ones)
    kernel.coeff_forward(shape, 0.3, *inputs, coeff, 0, none, view(output), saved, room, threads)
    kernel.coeff_backward(
        shape, 0.3, view(ones), *inputs, coeff, 0, none, saved, *map(view, grads), weight_grad, room, threads
    )
    expected = [1 + sum(coeff[heads * h : heads * (h + 1)]) for h in range(heads)]
    wrong = [abs(x - expected[i // (rows * channels)]) for i, x in enumerate(output)]
    return max(wrong) < 1e-4 and all(map(math.isfinite, (*weight_grad, *(x for grad in grads for x in grad))))


def main() -> None:
    library, *openmp = sys.argv[1:]
    for path in openmp:
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
    if not trial(open_library(library)):
        sys.exit("error: it computes something else")


if __name__ == "__main__":
    main()
