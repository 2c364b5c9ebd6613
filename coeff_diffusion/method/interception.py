"""How a layer's attention gets into our hands: while the layer runs, `scaled_dot_product_attention` (SDPA) is ours.

Hooks around the layer's forward push and pop a torch function mode, which sees every PyTorch function that the layer
calls. Nothing of the layer is replaced or repeated, so it does not matter who else changes it, and in which order.
diffusers' own attention is reached in less time, see `short_way`.

Legend: B samples, H heads, N queries, M keys, D channels of a key, E of a value.
"""

import sys
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode, _push_mode
from torch.utils.hooks import RemovableHandle

from . import short_way

# The number of the innermost hook, the same in every layer: `torch.compile` guards on the numbers of hooks that are
# always called, and would compile each of a network's many equal blocks by itself.
INNERMOST = -1
UNFLATTEN = Tensor.unflatten


class Call(NamedTuple):
    """The arguments of one call of SDPA, under PyTorch's names, however they were given."""

    query: Tensor  # [B, H, N, D]
    key: Tensor  # [B, H, M, D]; fewer heads where `enable_gqa`
    value: Tensor  # [B, H, M, E]
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = None
    enable_gqa: bool = False

    def misfit(self) -> str | None:
        """What of it has no maps that heads could share; None where nothing is wrong."""
        if self.query.ndim != 4:
            return f"a query of {list(self.query.shape)}, expected [batch, heads, tokens, channels]"
        heads, keys = self.query.shape[1], self.key.shape[-3] if self.key.ndim > 2 else 1
        if keys not in (1, heads) and (not self.enable_gqa or heads % keys):
            return f"{heads} heads of queries, but {keys} of keys, expected as many or, grouped, a divisor of them"
        return None

    def plain(self) -> Tensor:
        """What PyTorch makes of it, `[B, H, N, E]`; what else intercepts the layer gets to see it."""
        return short_way.scaled_dot_product_attention(**self._asdict())

    def spelled_out(self) -> "Call":
        """The same with all that SDPA does on the side done: one dtype, a key for every head, one mask for all."""
        query, key, value, mask = self[:4]
        batch, heads, queries, _ = query.shape
        device = query.device.type
        if torch.is_autocast_enabled(device) and query.dtype != torch.float64:
            query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
        if self.enable_gqa:
            key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
        if key.shape[:2] != query.shape[:2]:
            key, value = (x.expand(batch, heads, -1, -1) for x in (key, value))
        if self.is_causal:  # from the first key on, whatever the lengths
            seen = torch.ones(queries, key.shape[2], dtype=torch.bool, device=query.device).tril()
            if mask is None:
                mask = seen
            else:
                mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -torch.inf)
        return Call(query, key, value, mask, self.dropout_p, scale=self.scale)

    def of_samples(self, rows: Tensor) -> "Call":
        """The same for some samples of the batch."""
        mask = self.attn_mask
        if mask is not None and mask.ndim == 4 and len(mask) > 1:
            mask = mask[rows]
        return self._replace(query=self.query[rows], key=self.key[rows], value=self.value[rows], attn_mask=mask)


class Interceptor:
    """What stands between one layer and SDPA; a subclass says what happens there.

    Deliberately not an `nn.Module`: nothing of it is a part of the network. What a running forward has to remember is
    in its mode, so the layer may run in several threads at once.
    """

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        """The layer's attention, `[B, H, N, E]`, in place of what its first call of SDPA gives."""
        raise NotImplementedError

    def acts(self) -> bool:
        """Whether to intercept the forward that begins now."""
        return True

    def finished(self, layer: nn.Module, calls: int) -> None:
        """The layer's forward is done, without an error; it has called SDPA so many times."""

    def register(self, layer: nn.Module, innermost: bool = False) -> list[RemovableHandle]:
        """Intercept every forward of the layer until the handles are removed.

        Args:
            innermost: next to SDPA: whatever else intercepts the layer sees its calls first and may pass them on.
        """
        # What is pushed first is innermost, and has to be popped last.
        before = layer.register_forward_pre_hook(self._before, prepend=innermost)
        after = layer.register_forward_hook(self._after, prepend=not innermost, always_call=True)
        if innermost:
            layer._forward_hooks[INNERMOST] = layer._forward_hooks.pop(after.id)
            layer._forward_hooks_always_called[INNERMOST] = layer._forward_hooks_always_called.pop(after.id)
            after.id = INNERMOST
        return [before, after]

    def _before(self, layer: nn.Module, inputs: Any) -> None:
        if not self.acts():
            return
        pop_interrupted()
        # The frame that calls the hooks is that of the layer's whole forward. Compiled code has no such frames.
        frame = None if torch.compiler.is_compiling() else sys._getframe(1)
        interception = Interception(self, layer, frame)
        if short_way.leads_to(layer):
            short_way.running.takers.append(interception)
        else:
            interception.__enter__()

    def _after(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        found = self._ended()
        if found is not None and output is not None:  # no output: the layer raises an error, which is the one to report
            self.finished(layer, found.calls)

    def _ended(self) -> "Interception | None":
        """The interception that this one's `_before` began, taken away; None where it did not."""
        if not torch.compiler.is_compiling():
            takers = short_way.running.takers
            if takers and takers[-1].interceptor is self:
                taken: Interception = takers.pop()
                return taken
        mode = _get_current_function_mode()
        if isinstance(mode, Interception) and mode.interceptor is self:
            mode.__exit__(None, None, None)
            return mode
        return None


class Interception(TorchFunctionMode):
    """One forward of an intercepted layer, while it runs.

    Args:
        frame: of the module's call; None where it ends with a `with` statement.
    """

    def __init__(self, interceptor: Interceptor, layer: nn.Module, frame: FrameType | None = None) -> None:
        self.interceptor, self.layer, self.frame = interceptor, layer, frame
        self.calls = 0

    def __enter__(self) -> "Interception":
        # As TorchFunctionMode's own. But where a mode has one of its own, the compiler takes it for an object like any
        # other; modes that it recognizes it cannot push in a function that it compiles by itself, such as a hook.
        _push_mode(self)
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is scaled_dot_product_attention and not self.is_interrupted():
            return self.take(*args, **(kwargs or {}))
        if func is UNFLATTEN:  # which the compiler takes as a method alone
            return args[0].unflatten(*args[1:], **(kwargs or {}))
        return func(*args, **kwargs) if kwargs else func(*args)

    def take(self, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's attention in place of what its first call of SDPA gives; later calls pass."""
        self.calls += 1
        if self.calls == 1:
            return self.interceptor.attention(self.layer, Call(*args, **kwargs))
        return short_way.scaled_dot_product_attention(*args, **kwargs)

    def is_interrupted(self) -> bool:
        """Whether the forward is over and its hook was not told: PyTorch tells of an `Exception`, but not of Ctrl-C."""
        if self.frame is None:
            return False
        return _is_over_now(self.frame) if torch.compiler.is_compiling() else _is_over(self.frame)


def _is_over(frame: FrameType) -> bool:
    """Whether a function has returned."""
    running: FrameType | None = sys._getframe()
    while running is not None and running is not frame:
        running = running.f_back
    return running is None


_is_over_now = torch.compiler.disable(_is_over)  # not while something is compiled


def pop_interrupted() -> None:
    """Take away what forwards that Ctrl-C ended have left behind in this thread (it does nothing any more)."""
    while isinstance(mode := _get_current_function_mode(), Interception) and mode.is_interrupted():
        mode.__exit__(None, None, None)
    if not torch.compiler.is_compiling():
        short_way.running.any()
