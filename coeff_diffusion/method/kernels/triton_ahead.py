"""Compiles kernels in threads before they are needed: those of a layer's backward while the forward still runs.

Triton compiles a kernel in a second or two, outside of Python's lock, and the backward of Stable Diffusion 1.5 has
twelve: one after another they are most of what a first training step waits for.
"""

import os
import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

PARSES_IN_THREADS = sys.version_info >= (3, 12, 2) or (3, 11, 8) <= sys.version_info < (3, 12)
"""Before, Python counts the depth of all the sources that it parses in one place ("AST constructor recursion depth
mismatch"), and Triton parses those of its kernels: there, nothing is compiled ahead."""

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_begun: dict[Hashable, Future[object]] = {}


def begin(key: Hashable, compile_it: Callable[[], object]) -> None:
    """Compile in the background what `wait` is going to be asked for by this key; once."""
    global _pool
    with _lock:
        if key in _begun or not PARSES_IN_THREADS:
            return
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="compiles a kernel")
        _begun[key] = _pool.submit(compile_it)


def wait(key: Hashable) -> None:
    """Return when what was begun is done; if it failed, the launch that follows compiles again, and says why."""
    with _lock:
        future = _begun.get(key)
    if future is not None:
        future.exception()
