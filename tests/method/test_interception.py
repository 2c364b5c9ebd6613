"""A layer's call of SDPA gets into other hands while the layer runs, and nothing else does, whatever happens."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from coeff_diffusion.method import short_way
from coeff_diffusion.method.interception import Call, Interceptor, pop_interrupted
from coeff_diffusion.method.recombination import recombined_attention


class Layer(nn.Module):
    """Attention over its input, called however a test wants it."""

    def __init__(self, call: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.call = call or (lambda x: scaled_dot_product_attention(x, x, x))

    def forward(self, x: Tensor) -> Any:
        return self.call(x)


class Marked(Interceptor):
    """Adds a number to attention, and writes down what it was asked for."""

    def __init__(self, number: float = 100.0) -> None:
        self.number = number
        self.calls: list[Call] = []
        self.counts: list[int] = []

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        self.calls.append(call)
        return call.plain() + self.number

    def finished(self, layer: nn.Module, calls: int) -> None:
        self.counts.append(calls)


def tokens() -> Tensor:
    return torch.randn(2, 4, 6, 8)


def plain(x: Tensor) -> Tensor:
    return scaled_dot_product_attention(x, x, x)


@pytest.fixture(autouse=True, params=["any layer", "short way"])
def _nothing_is_left(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All of this holds for a layer of any kind, and for one that calls what diffusers' own processors call."""
    if request.param == "short way":
        monkeypatch.setattr(short_way, "leads_to", lambda layer: True)
        monkeypatch.setitem(globals(), "scaled_dot_product_attention", short_way.scaled_dot_product_attention)
    assert _get_current_function_mode_stack() == []
    yield
    assert _get_current_function_mode_stack() == []
    assert not short_way.running.any()


# --- what is intercepted ----------------------------------------------------------------------------------------------


def test_a_layer_is_intercepted_until_its_handles_are_removed() -> None:
    layer, marked, x = Layer(), Marked(), tokens()
    handles = marked.register(layer)
    assert torch.equal(layer(x), plain(x) + 100)
    assert torch.equal(plain(x), plain(x))
    assert marked.counts == [1]
    for handle in handles:
        handle.remove()
    assert torch.equal(layer(x), plain(x))
    assert not layer._forward_hooks
    assert not layer._forward_hooks_always_called
    assert not layer._forward_pre_hooks


def test_arguments_by_position_and_by_name_are_the_same() -> None:
    mask = torch.randn(6, 6)
    layer, marked, x = Layer(), Marked(), tokens()
    marked.register(layer)
    for call in (
        lambda x: scaled_dot_product_attention(x, x, x, mask, 0.0, False, scale=0.3, enable_gqa=True),
        lambda x: scaled_dot_product_attention(query=x, key=x, value=x, attn_mask=mask, scale=0.3, enable_gqa=True),
    ):
        layer.call = call
        layer(x)
    assert marked.calls[0] == marked.calls[1] == Call(x, x, x, mask, 0.0, False, 0.3, True)


def test_the_first_call_alone_is_taken_and_all_are_counted() -> None:
    layer, marked, x = Layer(lambda x: (plain(x), plain(x), plain(x))), Marked(), tokens()
    marked.register(layer)
    first, *others = layer(x)
    assert torch.equal(first, plain(x) + 100)
    assert all(torch.equal(other, plain(x)) for other in others)
    assert marked.counts == [3]


@pytest.mark.parametrize("innermost_first", [True, False])
def test_the_innermost_is_asked_last_whoever_came_first(innermost_first: bool) -> None:
    layer, x, order = Layer(), tokens(), []

    class Ordered(Marked):
        def attention(self, layer: nn.Module, call: Call) -> Tensor:
            order.append(self.number)
            return super().attention(layer, call)

    for innermost in (innermost_first, not innermost_first):
        Ordered(1 if innermost else 2).register(layer, innermost=innermost)
    torch.testing.assert_close(layer(x), plain(x) + 3)
    assert order == [2, 1]


def test_every_other_function_is_left_alone() -> None:
    x = torch.randn(2, 8)
    layer = Layer(lambda x: (x.unflatten(1, (2, -1)), x.unflatten(dim=1, sizes=(4, 2)), torch.cat([x, x], dim=1), x.T))
    before = layer(x)
    Marked().register(layer)
    assert all(torch.equal(one, two) for one, two in zip(layer(x), before, strict=True))


# --- what SDPA does on the side ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["", "bool", "float"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, {"enable_gqa": True}], ids=str)
@pytest.mark.parametrize("keys", [9, 4])
def test_spelled_out_it_is_the_same_attention(mask: str, options: dict[str, Any], keys: int) -> None:
    query = torch.randn(2, 4, 6, 8)
    key, value = (torch.randn(2, 2 if "enable_gqa" in options else 4, keys, 8) for _ in range(2))
    masks = {"": None, "bool": torch.rand(6, keys) > 0.3, "float": torch.randn(2, 1, 6, keys)}
    call = Call(query, key, value, masks[mask], **options)
    expected = scaled_dot_product_attention(query, key, value, masks[mask], **options)
    assert torch.equal(call.plain(), expected)
    plainer = call.spelled_out()
    assert (plainer.is_causal, plainer.enable_gqa) == (False, False)
    actual = recombined_attention(*plainer[:3], torch.zeros(4, 4), plainer.attn_mask, plainer.scale)
    torch.testing.assert_close(actual, expected)


def test_one_head_for_all_is_spelled_out() -> None:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 1, 9, 8)
    call = Call(query, key, key).spelled_out()
    assert call.key.shape == call.value.shape == (2, 4, 9, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_casts_what_pytorch_casts(dtype: torch.dtype) -> None:
    call = Call(*[tokens().to(dtype)] * 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert {x.dtype for x in call.spelled_out()[:3]} == {call.plain().dtype}
    assert call.spelled_out().query.dtype == dtype


@pytest.mark.parametrize("shape", [(6, 9), (1, 1, 6, 9), (3, 1, 1, 9), (3, 4, 6, 9)])
def test_of_some_samples(shape: tuple[int, ...]) -> None:
    query, key, mask = torch.randn(3, 4, 6, 8), torch.randn(3, 4, 9, 8), torch.randn(shape)
    call, rows = Call(query, key, key, mask, scale=0.2), torch.tensor([2, 0])
    torch.testing.assert_close(call.of_samples(rows).plain(), call.plain()[rows])


# --- whatever happens -------------------------------------------------------------------------------------------------


class LayerError(Exception):
    pass


def fail(error: type[BaseException]) -> Any:
    raise error


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_inside_the_layer_leaves_nothing(when: str) -> None:
    layer, marked, x = Layer(), Marked(), tokens()
    marked.register(layer, innermost=True)
    Marked().register(layer)
    layer.call = lambda x: fail(LayerError) if when == "before" else (plain(x), fail(LayerError))
    with pytest.raises(LayerError):
        layer(x)
    assert _get_current_function_mode_stack() == []
    assert torch.equal(plain(x), plain(x))
    assert marked.counts == []  # the layer's own error is the one to report


@pytest.mark.parametrize("prepend", [True, False])
def test_an_error_in_somebody_elses_hook_leaves_nothing(prepend: bool) -> None:
    layer, x = Layer(), tokens()
    Marked().register(layer, innermost=True)
    handle = layer.register_forward_pre_hook(lambda *_: fail(LayerError), prepend=prepend)
    with pytest.raises(LayerError):
        layer(x)
    assert _get_current_function_mode_stack() == []
    handle.remove()
    assert torch.equal(layer(x), plain(x) + 100)


@pytest.mark.parametrize("before", [True, False])
def test_what_ctrl_c_leaves_does_nothing_and_is_taken_away(before: bool) -> None:
    layer, marked, x = Layer(), Marked(), tokens()
    marked.register(layer)
    layer.call = lambda x: fail(KeyboardInterrupt) if before else (plain(x), fail(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    assert len(_get_current_function_mode_stack()) + len(short_way.running.takers) == 1  # PyTorch calls no hook then
    expected = scaled_dot_product_attention(x, x, x, scale=8**-0.5)
    assert torch.equal(plain(x), expected)
    layer.call = plain
    assert torch.equal(layer(x), expected + 100)
    assert _get_current_function_mode_stack() == []


def test_modes_of_others_are_never_taken_away() -> None:
    class Theirs(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    layer, x = Layer(lambda x: fail(KeyboardInterrupt)), tokens()
    Marked().register(layer)
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    layer.call = plain
    with Theirs() as theirs:
        assert torch.equal(layer(x), plain(x) + 100)
        assert _get_current_function_mode_stack()[-1] is theirs
    pop_interrupted()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant: bool) -> None:
    layer, marked, x = Layer(), Marked(), tokens().requires_grad_()
    marked.register(layer)
    output = checkpoint(layer, x, use_reentrant=reentrant)
    assert torch.equal(output, plain(x) + 100)
    (gradient,) = torch.autograd.grad(plain(x).sum(), x)
    output.sum().backward()
    torch.testing.assert_close(x.grad, gradient)
    assert len(marked.calls) == 2


def test_two_threads_in_one_layer_at_once() -> None:
    both_inside = threading.Barrier(2, timeout=20)

    def call(x: Tensor) -> Tensor:
        both_inside.wait()
        output = plain(x)
        both_inside.wait()
        return output

    layer, marked = Layer(call), Marked()
    marked.register(layer)
    inputs, outputs = [tokens(), tokens()], [None, None]

    def run(number: int) -> None:
        for _ in range(20):
            outputs[number] = layer(inputs[number])
        outside = plain(inputs[number])
        assert torch.equal(outputs[number], outside + 100)

    threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(output, plain(x) + 100) for x, output in zip(inputs, outputs, strict=True))
    assert marked.counts == [1] * 40
