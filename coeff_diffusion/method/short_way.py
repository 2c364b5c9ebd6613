"""The short way to the calls of SDPA that diffusers' own attention processors make.

A torch function mode is asked about every PyTorch function that a layer calls, some twenty, which takes longer than
small layers do. diffusers' processors all stand in one module and call `F.scaled_dot_product_attention`. There `F`
becomes a stand-in for `torch.nn.functional` in which this one function asks the interceptions of the running thread
first. Whatever else a processor does, and every processor from elsewhere, is as before.

While `torch.compile` traces, the stand-in is PyTorch's function and nothing else; and forwards that it watches, to
compile what it comes upon, do not go this way.
"""

import sys
import threading
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C._dynamo.eval_frame import get_eval_frame_callback

MODULE = "diffusers.models.attention_processor"


class Taker(Protocol):
    """What stands between a layer's forward and SDPA."""

    def take(self, *args: Any, **kwargs: Any) -> Tensor:
        """SDPA of these arguments, or what comes in its place."""

    def is_interrupted(self) -> bool:
        """Whether the forward is over without anybody having been told."""


class _Running(threading.local):
    """The forwards that run in a thread and are intercepted this way; what began last is asked first."""

    def __init__(self) -> None:
        self.takers: list[Any] = []

    def any(self) -> bool:
        """Whether there are some, once those that Ctrl-C ended are gone."""
        while self.takers and self.takers[-1].is_interrupted():
            self.takers.pop()
        return bool(self.takers)


running = _Running()


def scaled_dot_product_attention(*args: Any, **kwargs: Any) -> Tensor:
    """PyTorch's, for those who intercept it to see."""
    if torch.compiler.is_compiling() or not running.any():
        return torch.nn.functional.scaled_dot_product_attention(*args, **kwargs)
    taker: Taker = running.takers.pop()  # what it calls itself is for those that began earlier
    try:
        return taker.take(*args, **kwargs)
    finally:
        running.takers.append(taker)


class _Functional(ModuleType):
    """`torch.nn.functional` as it is when asked, but for one function."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.nn.functional, name)


_functional = _Functional(torch.nn.functional.__name__)
vars(_functional)["scaled_dot_product_attention"] = scaled_dot_product_attention


def leads_to(layer: nn.Module) -> bool:
    """Whether the calls of the layer's forward that begins now come this way."""
    if torch.compiler.is_compiling() or get_eval_frame_callback() is not None:
        return False
    function = getattr(type(getattr(layer, "processor", None)).__call__, "__globals__", None)
    module: Any = sys.modules.get(MODULE)
    if module is None or function is not vars(module):
        return False
    if module.F is torch.nn.functional:
        module.F = _functional
    return module.F is _functional
