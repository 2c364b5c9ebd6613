"""diffusers' own attention is reached without a mode, and nothing else changes its way."""

from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from coeff_diffusion.method import short_way
from coeff_diffusion.method.interception import Call, Interceptor


class Doubled(Interceptor):
    """Doubles attention."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def attention(self, layer: nn.Module, call: Call) -> Tensor:
        return 2 * call.plain()

    def finished(self, layer: nn.Module, calls: int) -> None:
        self.counts.append(calls)


class OfSomebodyElse(AttnProcessor2_0):  # type: ignore[misc]
    """With a call of its own, which nobody has looked at."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_args: Any, **_options: Any) -> Tensor:
        query, key, value = (
            project(hidden_states).unflatten(-1, (2, 8)).transpose(1, 2)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        output = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return attn.to_out[0](output)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("processor", "modes"), [(AttnProcessor2_0, 0), (OfSomebodyElse, 1)])
def test_only_diffusers_own_need_no_mode(processor: type, modes: int) -> None:
    torch.manual_seed(0)
    layer, states = Attention(16, heads=2, dim_head=8, processor=processor()), torch.randn(1, 4, 16)
    alone, doubled = layer(states), Doubled()
    bias = layer.to_out[0].bias
    handles = doubled.register(layer)
    found: list[int] = []  # modes while the layer's own code runs
    layer.to_q.register_forward_hook(lambda *_: found.append(len(_get_current_function_mode_stack())))
    torch.testing.assert_close(layer(states) - bias, 2 * (alone - bias))
    assert (found, doubled.counts) == ([modes], [1])
    for handle in handles:
        handle.remove()
    assert torch.equal(layer(states), alone)
    assert short_way.leads_to(layer) == (modes == 0)


def test_functions_that_others_put_in_place_later_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As packages for faster attention do."""
    layer, states = Attention(16, heads=2, dim_head=8, processor=AttnProcessor2_0()), torch.randn(1, 4, 16)
    assert short_way.leads_to(layer)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", lambda query, *_args, **_options: 0 * query)
    assert torch.equal(layer(states), layer.to_out[0].bias.expand(1, 4, 16))


def test_a_module_that_others_changed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = type("Functional", (), {"scaled_dot_product_attention": None})
    monkeypatch.setattr(attention_processor, "F", other)
    assert not short_way.leads_to(Attention(16, heads=2, dim_head=8, processor=AttnProcessor2_0()))
    assert attention_processor.F is other
