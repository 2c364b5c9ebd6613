"""The processor, against diffusers' own on every kind of attention layer it handles."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

from coeff_diffusion.method import recombination
from coeff_diffusion.method.override import CoeffAttnProcessor

HEADS = 4
PICTURE = (3, 16, 4, 4)  # B, C, height, width
TOKENS = (3, 10, 16)  # B, N, C
CONTEXT = (3, 7, 12)  # B, M, C'


def layer(**options: Any) -> Attention:
    return Attention(16, heads=HEADS, dim_head=4, **options).eval().requires_grad_(False)


def new_inputs(kind: str) -> dict[str, Tensor]:
    """The inputs that each kind of layer in a Stable Diffusion gets."""
    if kind == "picture":
        return {"hidden_states": torch.randn(PICTURE)}
    if kind == "self":
        return {"hidden_states": torch.randn(TOKENS)}
    return {"hidden_states": torch.randn(TOKENS), "encoder_hidden_states": torch.randn(CONTEXT)}


LAYERS: dict[str, tuple[str, dict[str, Any]]] = {
    "self": ("self", {}),
    "self with biases": ("self", {"bias": True, "out_bias": False}),
    "cross": ("cross", {"cross_attention_dim": 12}),
    "cross, layer norm": ("cross", {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm"}),
    "cross, group norm": (
        "cross",
        {"cross_attention_dim": 12, "cross_attention_norm": "group_norm", "cross_attention_norm_num_groups": 4},
    ),
    "query and key norm": ("self", {"qk_norm": "layer_norm"}),
    "unscaled": ("self", {"scale_qk": False}),
    "picture": (
        "picture",
        {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.7, "bias": True},
    ),
    "group norm on tokens": ("self", {"norm_num_groups": 4, "residual_connection": True}),
}


@pytest.fixture
def reference_attention(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Makes diffusers' own processor recombine: its attention function becomes the reference."""

    def patch(coeff: Tensor) -> None:
        def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
            return recombination.recombined_attention(query, key, value, coeff, attn_mask)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)

    return patch


@pytest.mark.parametrize("name", LAYERS)
def test_without_coefficients_it_is_the_base_bitwise(name: str) -> None:
    kind, options = LAYERS[name]
    attn, inputs = layer(**options), new_inputs(kind)
    expected = attn(**inputs)
    attn.set_processor(CoeffAttnProcessor(attn.processor))
    assert torch.equal(attn(**inputs), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_zero_coefficients_are_the_base(name: str) -> None:
    kind, options = LAYERS[name]
    attn, inputs = layer(**options), new_inputs(kind)
    expected = attn(**inputs)
    processor = CoeffAttnProcessor(attn.processor)
    processor.coeff = torch.zeros(HEADS, HEADS)
    attn.set_processor(processor)
    torch.testing.assert_close(attn(**inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "unscaled"])  # AttnProcessor2_0 scales always
@pytest.mark.parametrize("shape", [(HEADS, HEADS), (3, HEADS, HEADS)])
def test_differs_from_diffusers_own_in_the_attention_function_alone(
    name: str, shape: tuple[int, ...], reference_attention: Callable[[Tensor], None]
) -> None:
    kind, options = LAYERS[name]
    attn, inputs, coeff = layer(**options), new_inputs(kind), torch.randn(shape)
    processor = CoeffAttnProcessor(AttnProcessor2_0())
    processor.coeff = coeff
    attn.set_processor(processor)
    actual = attn(**inputs)
    attn.set_processor(AttnProcessor2_0())
    plain = attn(**inputs)
    reference_attention(coeff)
    torch.testing.assert_close(actual, attn(**inputs), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(actual, plain, atol=1e-2)


def test_spatial_norm() -> None:
    attn = Attention(32, heads=HEADS, dim_head=8, spatial_norm_dim=8).eval().requires_grad_(False)
    inputs = {"hidden_states": torch.randn(3, 32, 4, 4), "temb": torch.randn(3, 8, 2, 2)}
    expected = attn(**inputs)
    processor = CoeffAttnProcessor(attn.processor)
    attn.set_processor(processor)
    processor.coeff = torch.zeros(HEADS, HEADS)
    torch.testing.assert_close(attn(**inputs), expected, rtol=1e-5, atol=1e-6)
    processor.coeff, processor.rows = torch.zeros(3, HEADS, HEADS), torch.tensor([2])
    torch.testing.assert_close(attn(**inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7), (3, 1, 7), (3 * HEADS, 1, 7), (3 * HEADS, 10, 7)])
@pytest.mark.parametrize("rows", [None, [0, 2]])
def test_every_mask_that_diffusers_prepares(
    shape: tuple[int, ...], rows: list[int] | None, reference_attention: Callable[[Tensor], None]
) -> None:
    attn, inputs = layer(cross_attention_dim=12), new_inputs("cross")
    mask = (torch.rand(shape) > 0.6) * -10_000.0
    coeff = torch.randn(3, HEADS, HEADS)
    processor = CoeffAttnProcessor(attn.processor)
    processor.coeff = coeff
    if rows is not None:
        coeff = coeff.clone()
        coeff[[row for row in range(3) if row not in rows]] = 0
        processor.rows = torch.tensor(rows)
    attn.set_processor(processor)
    actual = attn(**inputs, attention_mask=mask)
    attn.set_processor(AttnProcessor2_0())
    reference_attention(coeff)
    torch.testing.assert_close(actual, attn(**inputs, attention_mask=mask), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("base", [AttnProcessor2_0(), AttnProcessor(), SlicedAttnProcessor(2)])
@pytest.mark.parametrize("name", ["self", "cross, layer norm", "picture"])
def test_rows_that_are_off_are_the_base_bitwise(base: Any, name: str) -> None:
    kind, options = LAYERS[name]
    attn, inputs = layer(**options), new_inputs(kind)
    attn.set_processor(base)
    plain = attn(**inputs)
    processor = CoeffAttnProcessor(base)
    processor.coeff = torch.randn(3, HEADS, HEADS)
    attn.set_processor(processor)
    all_on = attn(**inputs)
    processor.rows = torch.tensor([1])
    mixed = attn(**inputs)
    assert torch.equal(mixed[[0, 2]], plain[[0, 2]])
    torch.testing.assert_close(mixed[1], all_on[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[1], plain[1], atol=1e-2)


def test_rows_of_another_batch_are_an_error() -> None:
    attn = layer()
    processor = CoeffAttnProcessor(attn.processor)
    processor.coeff, processor.rows = torch.randn(2, HEADS, HEADS), torch.tensor([1])
    attn.set_processor(processor)
    with pytest.raises(ValueError, match="2 samples, but the batch has 3"):
        attn(torch.randn(TOKENS))


def test_dropout_is_on_the_coefficients_and_in_training_only() -> None:
    attn, states = layer(), torch.randn(1, 10, 16)
    processor = CoeffAttnProcessor(attn.processor, dropout=0.5)
    processor.coeff = torch.randn(HEADS, HEADS)
    attn.set_processor(processor)
    assert torch.equal(attn(states), attn(states))
    attn.train()
    outputs = torch.stack([attn(states) for _ in range(100)])
    assert outputs.std(0).max() > 0.01
    # The output is linear in the coefficients, so that its mean over dropout is the output without.
    torch.testing.assert_close(outputs.mean(0), attn.eval()(states), rtol=0, atol=float(outputs.std(0).max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_layers_keep_float32_coefficients(dtype: torch.dtype) -> None:
    attn, states, coeff = layer(), torch.randn(TOKENS), torch.randn(HEADS, HEADS)
    processor = CoeffAttnProcessor(attn.processor)
    processor.coeff = coeff
    attn.set_processor(processor)
    exact = attn(states)
    attn.to(dtype)
    output = attn(states.to(dtype))
    assert output.dtype == dtype
    assert processor.coeff is coeff
    assert coeff.dtype == torch.float32
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rows", [None, torch.tensor([0, 2])])
def test_autocast(rows: Tensor | None) -> None:
    attn, states = layer(), torch.randn(TOKENS)
    processor = CoeffAttnProcessor(attn.processor)
    processor.coeff, processor.rows = torch.randn(3, HEADS, HEADS), rows
    attn.set_processor(processor)
    exact = attn(states)
    with torch.autocast("cpu", torch.bfloat16):
        output = attn(states)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)
