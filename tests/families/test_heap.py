"""Freed memory goes back to the system."""

import ctypes
import sys

import psutil
import pytest

from coeff_diffusion.families.heap import return_freed

BLOCK, COUNT = 2**16, 3000  # bytes; small enough for the heap, 190 MB together


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="only glibc keeps freed memory"
)
def test_freed_memory_below_what_is_used_goes_back() -> None:
    def resident() -> int:
        return psutil.Process().memory_info().rss

    blocks = [b"x" * BLOCK for _ in range(COUNT)]
    full = resident()
    del blocks[:-1]  # the last one lies above all others
    return_freed()
    assert resident() < full - BLOCK * COUNT * 3 // 4
    assert blocks[0] == b"x" * BLOCK
