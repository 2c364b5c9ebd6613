"""Where the attention layers of any network are: it runs once, and who calls PyTorch's attention is looked at.

Legend: B samples, H heads, N queries, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from ..subject.errors import listed
from .attachment import is_attached
from .errors import AttachmentError
from .interception import Call
from .sites import Site, unwrapped


@dataclass
class Forward:
    """One forward of a module: the calls of SDPA that are its own, not those of modules inside it."""

    path: str
    heads: list[int] = field(default_factory=list)  # of each call
    crosses: bool = False
    problems: list[str] = field(default_factory=list)

    def note(self, call: Call) -> None:
        """Write down one call."""
        if misfit := call.misfit():
            self.problems.append(misfit)
            return
        self.heads.append(call.query.shape[1])
        self.crosses = call.query.shape[2] != call.key.shape[2]


class Trace(TorchFunctionMode):
    """Writes down which module calls SDPA, as long as it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Forward] = []
        self.finished: dict[str, list[Forward]] = {}
        self.in_one_piece: list[str] = []  # modules whose attention PyTorch computes without SDPA being seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and self.running:
            self.running[-1].note(Call(*args, **(kwargs or {})))
        if func is multi_head_attention_forward and self.running:
            self.in_one_piece.append(self.running[-1].path)
        return func(*args, **(kwargs or {}))

    def begin(self, path: str, layer: nn.Module, inputs: Any) -> None:
        """Pre-forward hook of every module."""
        self.running.append(Forward(path))

    def end(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook of every module, called after errors too."""
        done = self.running.pop()
        if done.heads or done.problems:
            self.finished.setdefault(done.path, []).append(done)


def trace_sites(module: Any, run: Callable[[], object], blocks: Sequence[str] = ()) -> dict[str, Site]:
    """The layers of any network that `attach_heads` takes, by path, in the order in which they run.

    A layer is the innermost module around a call of PyTorch's `scaled_dot_product_attention`; it has as many heads as
    that call's query. Grouped keys and values are no obstacle: each query head has a map of its own. Of transformers,
    models with `attn_implementation="sdpa"`, which is their default, call it.

    Args:
        module: the network.
        run: calls it, for example `lambda: model(pixel_values=torch.zeros(1, 3, 224, 224))`.
        blocks: shell patterns on the path, such as "vit.layers.*": layers that match any of them. Empty: all.

    Raises:
        AttachmentError: recombination is attached already; no layer calls that function, or none that matches; or one
            that matches calls it not once, or with heads that cannot be recombined. The message says what was found.
    """
    module = unwrapped(module)
    if is_attached(module):
        raise AttachmentError(f"recombination is attached to this {type(module).__name__}; detach it first")
    trace = _traced(module, run)
    if not trace.finished:
        raise AttachmentError(_nothing_found(module, trace))
    chosen = {
        path: forwards
        for path, forwards in trace.finished.items()
        if not blocks or any(fnmatchcase(path, pattern) for pattern in blocks)
    }
    if not chosen:
        raise AttachmentError(
            f"no attention layer matches blocks={list(blocks)}; this {type(module).__name__} has "
            f"{len(trace.finished)}, named like {next(iter(trace.finished))!r}"
        )
    if wrong := [f"{path} {problem}" for path, forwards in chosen.items() if (problem := _problem(forwards))]:
        raise AttachmentError(f"these layers of the {type(module).__name__} cannot be recombined: {listed(wrong)}")
    return {
        path: Site(path, module.get_submodule(path), forwards[0].heads[0], "cross" if forwards[0].crosses else "self")
        for path, forwards in chosen.items()
    }


def _traced(module: Any, run: Callable[[], object]) -> Trace:
    trace, handles = Trace(), []
    try:
        for path, part in module.named_modules():
            handles.append(part.register_forward_pre_hook(partial(trace.begin, path)))
            handles.append(part.register_forward_hook(trace.end, always_call=True))
        with torch.no_grad(), trace:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _problem(forwards: Sequence[Forward]) -> str:
    """Why a layer cannot be recombined; empty where it can."""
    if found := [problem for forward in forwards for problem in forward.problems]:
        return f"has {found[0]}"
    if counts := [len(forward.heads) for forward in forwards if len(forward.heads) != 1]:
        return f"called scaled_dot_product_attention {counts[0]} times in one forward, expected once"
    if len(heads := sorted({forward.heads[0] for forward in forwards})) > 1:
        return f"has {' or '.join(map(str, heads))} heads, expected the same number each time it runs"
    return ""


def _nothing_found(module: Any, trace: Trace) -> str:
    found = f"no layer of this {type(module).__name__} called PyTorch's scaled_dot_product_attention"
    implementation = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if trace.in_one_piece:
        return f"{found}: {listed(trace.in_one_piece)} compute theirs in one piece (nn.MultiheadAttention)"
    if implementation not in (None, "sdpa"):
        return f'{found}: its attention is {implementation!r}; load it with attn_implementation="sdpa"'
    return f"{found} while it ran"
