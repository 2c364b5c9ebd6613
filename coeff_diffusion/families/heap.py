"""Memory that was freed goes back to the system, so that other programs, and this one's next base, can have it."""

import ctypes
import sys
from contextlib import suppress


def return_freed() -> None:
    """Give what the C library keeps of freed memory back to the system. It takes some milliseconds.

    Tensors of a few megabytes lie in glibc's heap, which keeps the pages of those that are freed between others: a
    Stable Diffusion XL rounded to eight bits held 9.4 GB where it needs 4.2. Other systems give pages back by
    themselves, or have no such call; then nothing happens.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library without it, such as musl
            ctypes.CDLL(None).malloc_trim(0)
