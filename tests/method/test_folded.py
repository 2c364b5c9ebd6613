"""Cross-attention that keeps what depends on the prompt: exact, faster where it claims to be, never stale."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from coeff_diffusion import attach
from coeff_diffusion.method.attachment import activate
from coeff_diffusion.method.kernels import folded
from coeff_diffusion.method.override import CoeffAttnProcessor

CHANNELS, HEADS, TOKENS = 64, 4, 7  # 64 > 7 * 3: folding wins


def layer(**options: Any) -> Attention:
    options = {"heads": HEADS, "dim_head": CHANNELS // HEADS, "cross_attention_dim": 12, **options}
    attn = Attention(CHANNELS, **options).eval().requires_grad_(False)
    attn.set_processor(CoeffAttnProcessor(attn.processor))
    return attn


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many prompts were worked out so far."""
    made: list[Any] = []
    original = folded._prompt

    def counted(*arguments: Any) -> Any:
        made.append(original(*arguments))
        return made[-1]

    monkeypatch.setattr(folded, "_prompt", counted)
    return lambda: len(made)


def unkept(attn: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """What the layer gives without keeping anything (with gradients it never does)."""
    with torch.enable_grad():
        return attn(hidden, encoder_hidden_states=context)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_equals_the_same_layer_unfolded(bias: bool, per_sample: bool, residual: bool, count: Any) -> None:
    attn = layer(bias=bias, residual_connection=residual, rescale_output_factor=1.5).double()
    attn.processor.act(torch.randn(*[2] * per_sample, HEADS, HEADS))
    context = torch.randn(2, TOKENS, 12, dtype=torch.float64)
    for _ in range(3):
        hidden = torch.randn(2, 10, CHANNELS, dtype=torch.float64)
        torch.testing.assert_close(attn(hidden, encoder_hidden_states=context), unkept(attn, hidden, context))
    assert count() == 1
    prompt = attn.processor.prompts.of(attn, context, attn.processor.coeff)
    assert prompt is not None
    assert prompt.folded is not None


@torch.no_grad()
def test_errs_at_most_twice_as_much_as_plain_attention() -> None:
    attn = layer()
    hidden, context = torch.randn(2, 50, CHANNELS), torch.randn(2, TOKENS, 12)
    exact = layer().double()
    exact.load_state_dict(attn.state_dict())

    def error() -> float:
        best = unkept(exact, hidden.double(), context.double())
        return float((attn(hidden, encoder_hidden_states=context).double() - best).abs().max())

    plain = error()
    coeff = 0.2 * torch.randn(HEADS, HEADS)
    attn.processor.act(coeff)
    exact.processor.act(coeff.double())
    assert error() <= 2 * plain


@torch.no_grad()
def test_keys_and_values_are_kept_where_folding_does_not_win(count: Any) -> None:
    attn = layer()
    attn.processor.act(torch.randn(HEADS, HEADS))
    context = torch.randn(2, 40, 12)  # 64 < 40 * 3
    hidden = torch.randn(2, 10, CHANNELS)
    expected = unkept(attn, hidden, context)
    for _ in range(2):
        torch.testing.assert_close(attn(hidden, encoder_hidden_states=context), expected)
    prompt = attn.processor.prompts.of(attn, context, attn.processor.coeff)
    assert count() == 1
    assert prompt is not None
    assert prompt.folded is None


def products(attn: Attention, tokens: int, fold: bool) -> int:
    """The multiplications for a picture token, counted on the weights' shapes."""
    c, d = attn.to_q.in_features, attn.to_q.out_features
    return 2 * c * attn.heads * tokens if fold else 2 * c * d + 2 * tokens * d


@pytest.mark.parametrize(("channels", "tokens", "wins"), [(320, 77, False), (640, 77, True), (1280, 77, True)])
def test_folds_where_it_saves(channels: int, tokens: int, wins: bool) -> None:
    attn = layer(heads=8, dim_head=channels // 8)
    attn.to_q = nn.Linear(channels, channels, bias=False)
    attn.to_out[0] = nn.Linear(channels, channels)
    assert (products(attn, tokens, True) < products(attn, tokens, False)) == wins
    assert folded._folding_wins(attn, tokens) == wins


def changed_weight(attn: Attention, context: Tensor) -> Tensor:
    attn.to_v.weight.add_(1)
    return context


def exchanged_weight(attn: Attention, context: Tensor) -> Tensor:
    attn.to_out[0].weight = nn.Parameter(attn.to_out[0].weight + 1, requires_grad=False)
    return context


def moved_weight(attn: Attention, context: Tensor) -> Tensor:
    attn.to_k.weight.data = attn.to_k.weight.data + 1
    return context


def changed_bias(attn: Attention, context: Tensor) -> Tensor:
    attn.to_out[0].bias.add_(1)
    return context


def changed_prompt(attn: Attention, context: Tensor) -> Tensor:
    return context.add_(1)


def other_prompt(attn: Attention, context: Tensor) -> Tensor:
    return context + 1


def other_coefficients(attn: Attention, context: Tensor) -> Tensor:
    attn.processor.act(torch.randn(HEADS, HEADS))
    return context


def changed_coefficients(attn: Attention, context: Tensor) -> Tensor:
    attn.processor.coeff.mul_(2)
    return context


def exchanged_layer(attn: Attention, context: Tensor) -> Tensor:
    class Lora(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.sum()

    attn.to_q.__class__ = Lora
    return context


def hooked_layer(attn: Attention, context: Tensor) -> Tensor:
    attn.to_v.register_forward_hook(lambda module, inputs, output: output + 1)
    return context


def exchanged_forward(attn: Attention, context: Tensor) -> Tensor:
    forward = attn.to_v.forward
    attn.to_v.forward = lambda x: forward(x) + 1
    return context


CHANGES = [
    changed_weight, exchanged_weight, moved_weight, changed_bias, changed_prompt, other_prompt, other_coefficients,
    changed_coefficients, exchanged_layer, hooked_layer, exchanged_forward,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tokens", [TOKENS, 40])
@torch.no_grad()
def test_nothing_stale_is_used(change: Callable[[Attention, Tensor], Tensor], tokens: int) -> None:
    attn = layer()
    attn.processor.act(torch.randn(HEADS, HEADS))
    hidden, context = torch.randn(2, 10, CHANNELS), torch.randn(2, tokens, 12)
    before = attn(hidden, encoder_hidden_states=context)
    context = change(attn, context)
    after = attn(hidden, encoder_hidden_states=context)
    torch.testing.assert_close(after, unkept(attn, hidden, context), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after, atol=1e-3)


@torch.no_grad()
def test_nothing_outlives_its_prompt() -> None:
    attn = layer()
    attn.processor.act(torch.randn(HEADS, HEADS))
    context = torch.randn(2, TOKENS, 12)
    attn(torch.randn(2, 10, CHANNELS), encoder_hidden_states=context)
    assert attn.processor.prompts._kept is not None
    del context
    assert attn.processor.prompts._kept is None


def test_nothing_is_kept_where_it_would_be_wrong(count: Any) -> None:
    attn = layer()
    attn.processor.act(torch.randn(HEADS, HEADS))
    hidden, context = torch.randn(2, 10, CHANNELS), torch.randn(2, TOKENS, 12)
    attn(hidden, encoder_hidden_states=context)  # gradients may be wanted
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            attn(hidden, encoder_hidden_states=context)
        attn(hidden, encoder_hidden_states=context, attention_mask=torch.zeros(2, 1, TOKENS))
        attn.bfloat16()(hidden.bfloat16(), encoder_hidden_states=context.bfloat16())
    with torch.inference_mode():
        attn.float()(hidden, encoder_hidden_states=torch.randn(2, TOKENS, 12))
    assert count() == 0


@torch.no_grad()
def test_a_drawing_computes_each_prompt_once(tiny_pipe: Any, count: Any) -> None:
    unet = tiny_pipe.unet
    attach(unet, trainable=False)
    layers = dict(unet.named_modules())
    paths = [path.removesuffix(".processor") for path in unet.attn_processors]
    activate(unet, {path: 0.3 * torch.randn(layers[path].heads, layers[path].heads) for path in paths})
    tiny_pipe("a dog", num_inference_steps=4, output_type="latent")
    cross = sum(layers[path].is_cross_attention for path in paths)
    assert count() == cross
    assert all(layers[path].processor.prompts._kept is None for path in paths)  # the drawing is over
