"""What recombination does in one layer: on diffusers' own layers, and on a layer that calls SDPA in unusual ways."""

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    JointAttnProcessor2_0,
    SlicedAttnProcessor,
    SpatialNorm,
)
from exactness import assert_as_exact_as_plain
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from coeff_diffusion.method import recombination
from coeff_diffusion.method.acting import Acting
from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.method.override import CoeffAttnProcessor, Override

HEADS = 4
PICTURE = (3, 16, 4, 4)  # B, C, height, width
TOKENS = (3, 10, 16)  # B, N, C
CONTEXT = (3, 7, 12)  # B, M, C'
COEFFS: dict[str, Callable[[], Tensor]] = {
    "one matrix": lambda: torch.randn(HEADS, HEADS),
    "diagonal": lambda: torch.diag_embed(torch.randn(HEADS)),
    "per sample": lambda: torch.randn(3, HEADS, HEADS),
    "diagonals": lambda: torch.diag_embed(torch.randn(3, HEADS)),
    "some samples": lambda: torch.randn(3, HEADS, HEADS) * torch.tensor([1, 0, 1])[:, None, None],
    "some diagonals": lambda: torch.diag_embed(torch.randn(3, HEADS)) * torch.tensor([0, 1, 0])[:, None, None],
}


def overridden(layer: nn.Module, coeff: Tensor | None = None, dropout: float = 0.0) -> Override:
    override = Override("some.layer", dropout)
    override.acting = None if coeff is None else Acting.of(coeff)
    override.register(layer, innermost=True)
    return override


def attention(**options: Any) -> Attention:
    return Attention(16, **{"heads": HEADS, "dim_head": 4, **options}).eval().requires_grad_(False)


LAYERS: dict[str, dict[str, Any]] = {
    "self": {"bias": True, "out_bias": False},
    "cross": {"cross_attention_dim": 12},
    "cross, normed": {"cross_attention_dim": 12, "cross_attention_norm": "layer_norm", "qk_norm": "layer_norm"},
    "picture": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 1.7, "bias": True},
    "joint": {"added_kv_proj_dim": 12, "context_pre_only": False, "out_dim": 16},
}


def inputs_of(name: str) -> dict[str, Tensor]:
    """What each kind of layer gets."""
    inputs = {"hidden_states": torch.randn(PICTURE if name == "picture" else TOKENS)}
    return {**inputs, "encoder_hidden_states": torch.randn(CONTEXT)} if "cross" in name or name == "joint" else inputs


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Makes diffusers' own processors recombine: their attention function becomes the reference."""

    def patch(coeff: Tensor) -> None:
        def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **_: Any) -> Tensor:
            return recombination.recombined_attention(query, key, value, coeff, attn_mask)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)

    return patch


def first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("coeff", COEFFS)
def test_differs_from_the_base_in_the_attention_function_alone(
    name: str, coeff: str, reference: Callable[[Tensor], None]
) -> None:
    attn, inputs, coefficients = attention(**LAYERS[name]), inputs_of(name), COEFFS[coeff]()
    if name == "joint":
        attn.set_processor(JointAttnProcessor2_0())
    plain = first(attn(**inputs))
    override = overridden(attn, coefficients)
    actual = first(attn(**inputs))
    override.acting = None
    assert torch.equal(first(attn(**inputs)), plain)
    for sample in range(3):
        on = bool((coefficients if coefficients.ndim == 2 else coefficients[sample]).any())
        assert on is not torch.equal(actual[sample], plain[sample])
    reference(coefficients)
    torch.testing.assert_close(actual, first(attn(**inputs)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 7), (3, 1, 7), (3 * HEADS, 1, 7), (3 * HEADS, 10, 7)])
@pytest.mark.parametrize("coeff", ["one matrix", "some samples", "some diagonals"])
def test_every_mask_that_diffusers_prepares(
    shape: tuple[int, ...], coeff: str, reference: Callable[[Tensor], None]
) -> None:
    attn, inputs, coefficients = attention(cross_attention_dim=12), inputs_of("cross"), COEFFS[coeff]()
    inputs["attention_mask"] = (torch.rand(shape) > 0.6) * -10_000.0
    override = overridden(attn, coefficients)
    actual = attn(**inputs)
    override.acting = None
    reference(coefficients)
    torch.testing.assert_close(actual, attn(**inputs), rtol=1e-5, atol=1e-6)


def test_spatial_norm() -> None:
    attn = Attention(32, heads=HEADS, dim_head=8, spatial_norm_dim=8).eval().requires_grad_(False)
    assert isinstance(attn.spatial_norm, SpatialNorm)
    inputs = {"hidden_states": torch.randn(3, 32, 4, 4), "temb": torch.randn(3, 8, 2, 2)}
    plain = attn(**inputs)
    overridden(attn, COEFFS["some samples"]())
    assert torch.equal(attn(**inputs)[1], plain[1])
    assert not torch.allclose(attn(**inputs)[0], plain[0], atol=1e-3)


# --- whatever a layer asks of SDPA ------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Nothing but one call of SDPA."""

    def forward(self, *arguments: Any, **options: Any) -> Tensor:
        return scaled_dot_product_attention(*arguments, **options)


@pytest.mark.parametrize("options", [{}, {"scale": 0.3}, {"is_causal": True}, {"enable_gqa": True}], ids=str)
@pytest.mark.parametrize("coeff", ["one matrix", "per sample", "some samples", "diagonal"])
def test_as_exact_as_plain_attention_whatever_is_asked(options: dict[str, Any], coeff: str) -> None:
    layer, coefficients = Layer(), 0.3 * COEFFS[coeff]()
    query = torch.randn(3, HEADS, 6, 8)
    key, value = (torch.randn(3, 2 if "enable_gqa" in options else HEADS, 9, 8) for _ in range(2))
    override = overridden(layer, coefficients)
    ours = layer(query, key, value, **options)
    override.acting = None
    mask = torch.ones(6, 9).tril().bool() if "is_causal" in options else None

    def way(query: Tensor, key: Tensor, value: Tensor, coeff: Tensor, *_: Any) -> Tensor:
        return ours

    if "enable_gqa" in options:
        key, value = key.repeat_interleave(2, 1), value.repeat_interleave(2, 1)
    if "scale" in options:  # which `assert_as_exact_as_plain` leaves at its default
        query = query * options["scale"] * 8**0.5
    assert_as_exact_as_plain(way, [query, key, value, coefficients], mask, train=False)


def test_gradients_are_those_of_the_reference() -> None:
    layer, coeff = Layer(), torch.randn(HEADS, HEADS, requires_grad=True)
    tensors = [torch.randn(3, HEADS, n, 8, requires_grad=True) for n in (6, 9, 9)]
    overridden(layer, coeff)
    mask = torch.ones(6, 9).tril().bool()
    found = torch.autograd.grad(layer(*tensors, is_causal=True).square().sum(), (*tensors, coeff))
    output = recombination.recombined_attention(*tensors, coeff, mask)
    expected = torch.autograd.grad(output.square().sum(), (*tensors, coeff))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("coeff", ["per sample", "some samples", "some diagonals"])
def test_frames_of_a_sample_get_its_matrix(coeff: str) -> None:
    layer, coefficients = Layer(), COEFFS[coeff]()
    tensors = [torch.randn(3 * 5, HEADS, n, 8) for n in (6, 9, 9)]
    overridden(layer, coefficients)
    together = layer(*tensors)
    for sample in range(3):
        rows = slice(5 * sample, 5 * sample + 5)
        alone = Layer()
        overridden(alone, coefficients[sample])
        torch.testing.assert_close(together[rows], alone(*(x[rows] for x in tensors)))


@pytest.mark.parametrize(
    ("shape", "options", "coeff", "message"),
    [
        ((3, 6, 8), {}, (4, 4), r"some.layer has a query of \[3, 6, 8\], expected \[batch, heads, tokens, channels\]"),
        ((3, 2, 6, 8), {}, (4, 4), "some.layer has 2 heads, but the coefficients are for 4"),
        ((3, 4, 6, 8), {}, (2, 4, 4), "some.layer has a batch of 3, but the coefficients are for 2 samples"),
        ((1, 4, 6, 8), {}, (2, 4, 4), "some.layer has a batch of 1, but the coefficients are for 2 samples"),
        ((3, 4, 6, 8), {"dropout_p": 0.1}, (4, 4), r"some.layer drops entries of its maps \(dropout_p=0.1\)"),
    ],
)
def test_what_cannot_be_recombined_is_an_error(
    shape: tuple[int, ...], options: dict[str, Any], coeff: tuple[int, ...], message: str
) -> None:
    layer, x = Layer(), torch.randn(shape)
    overridden(layer, torch.randn(coeff))
    with pytest.raises(AttachmentError, match=message):
        layer(x, x, x, **options)


@torch.no_grad()
def test_dropout_is_on_the_coefficients_and_in_training_only() -> None:
    attn, states = attention(), torch.randn(1, 10, 16)
    overridden(attn, torch.randn(HEADS, HEADS, requires_grad=True), dropout=0.5)
    assert torch.equal(attn(states), attn(states))
    attn.train()
    outputs = torch.stack([attn(states) for _ in range(100)])
    assert outputs.std(0).max() > 0.01
    # The output is linear in the coefficients, so that its mean over dropout is the output without.
    torch.testing.assert_close(outputs.mean(0), attn.eval()(states), rtol=0, atol=float(outputs.std(0).max()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("coeff", ["one matrix", "some samples"])
def test_half_precision_layers_keep_float32_coefficients(dtype: torch.dtype, coeff: str) -> None:
    attn, states = attention(), torch.randn(TOKENS)
    override = overridden(attn, COEFFS[coeff]())
    exact = attn(states)
    output = attn.to(dtype)(states.to(dtype))
    assert output.dtype == dtype
    assert override.acting is not None
    assert override.acting.coeff.dtype == torch.float32
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("coeff", ["one matrix", "some samples", "diagonal"])
@pytest.mark.parametrize("norm", [None, "layer_norm"])  # leaves queries and keys in float32, the values not
def test_autocast(coeff: str, norm: str | None) -> None:
    attn, states = attention(qk_norm=norm), torch.randn(TOKENS)
    overridden(attn, COEFFS[coeff]())
    exact = attn(states)
    with torch.autocast("cpu", torch.bfloat16):
        output = attn(states)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), exact, rtol=0.05, atol=0.08)


# --- exactly one call -------------------------------------------------------------------------------------------------


class Twice:
    """Someone's own processor, with attention to the picture and to something else."""

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: Any) -> Tensor:
        x = hidden_states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        output = scaled_dot_product_attention(x, x, x) + scaled_dot_product_attention(x, x, x)
        return output.transpose(1, 2).flatten(2)


class Never:
    """Someone's own processor, with maps of its own."""

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: Any) -> Tensor:
        return hidden_states.cumsum(1)


class Backend(Never):
    """What a processor looks like that chooses its attention function by diffusers' backends."""

    _attention_backend = None


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (Twice(), r"some.layer \(Twice\) cannot be recombined: it called .* 2 times, expected once; choose other"),
        (Never(), r"some.layer \(Never\) .* 0 times, expected once; remove what computes its attention"),
        (Backend(), r"0 times.*call model.set_attention_backend\(\"native\"\)"),
        (SlicedAttnProcessor(2), r"0 times.*call pipe.disable_attention_slicing\(\)"),
        (AttnProcessor(), r"0 times.*call model.set_attn_processor\(AttnProcessor2_0\(\.\.\.\)\)"),
    ],
)
def test_a_layer_without_exactly_one_call_is_an_error(processor: Any, message: str) -> None:
    attn, states = attention(), torch.randn(TOKENS)
    override = overridden(attn, torch.randn(HEADS, HEADS))
    attn.set_processor(processor)
    with pytest.raises(AttachmentError, match=message):
        attn(states)
    override.acting = None
    attn(states)  # where nothing acts, nothing is asked


def test_a_layer_without_processors_is_called_by_its_path() -> None:
    layer = nn.Identity()
    overridden(layer, torch.randn(HEADS, HEADS))
    with pytest.raises(AttachmentError, match="^some.layer cannot be recombined: it called .* 0 times"):
        layer(torch.randn(TOKENS))


def test_of_an_ip_adapter_the_text_is_recombined(reference: Callable[[Tensor], None]) -> None:
    attn, coeff = attention(cross_attention_dim=12), torch.randn(HEADS, HEADS)
    attn.set_processor(IPAdapterAttnProcessor2_0(16, 12, num_tokens=(3, 2), scale=[0.7, 0.0]).requires_grad_(False))
    hidden, text, pictures = torch.randn(TOKENS), torch.randn(CONTEXT), [torch.randn(3, 1, n, 12) for n in (3, 2)]
    inputs = {"hidden_states": hidden, "encoder_hidden_states": (text, pictures)}
    scale = attn.processor.scale
    both = attn(**inputs)
    attn.processor.scale = [0.0, 0.0]
    text_alone = attn(**inputs)
    override = overridden(attn, coeff)
    recombined = attn(**inputs)
    attn.processor.scale = scale
    # The projection behind is linear: what the pictures add does not depend on what becomes of the text.
    torch.testing.assert_close(attn(**inputs) - recombined, both - text_alone)
    override.acting = None
    attn.processor.scale = [0.0, 0.0]
    reference(coeff)
    torch.testing.assert_close(recombined, attn(**inputs), rtol=1e-5, atol=1e-6)


# --- the processor to set by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["self", "cross, normed", "picture"])
def test_the_processor_recombines_as_the_hooks_do(name: str) -> None:
    attn, inputs, coeff = attention(**LAYERS[name]), inputs_of(name), COEFFS["some samples"]()
    plain, original = attn(**inputs), attn.processor
    attn.set_processor(CoeffAttnProcessor(original))
    assert torch.equal(attn(**inputs), plain)
    attn.processor.act(coeff)
    by_processor = attn(**inputs)
    attn.set_processor(original)
    overridden(attn, coeff)
    assert torch.equal(by_processor, attn(**inputs))
    assert not torch.allclose(by_processor, plain, atol=1e-3)


def test_the_processor_hands_over_all_that_the_one_inside_takes() -> None:
    class Scaled(AttnProcessor2_0):
        def __call__(self, attn: Attention, hidden_states: Tensor, factor: float = 1, **_: Any) -> Tensor:
            return factor * super().__call__(attn, hidden_states)

    attn, states = attention(), torch.randn(TOKENS)
    attn.set_processor(CoeffAttnProcessor(Scaled()))
    attn.processor.act(torch.randn(HEADS, HEADS))
    assert list(inspect.signature(attn.processor.__call__).parameters) == ["attn", "hidden_states", "factor", "_"]
    assert torch.equal(attn(states, factor=3.0), 3 * attn(states))


def test_the_processor_insists_on_one_call() -> None:
    attn = attention()
    attn.set_processor(CoeffAttnProcessor(SlicedAttnProcessor(2)))
    attn.processor.act(torch.randn(HEADS, HEADS))
    with pytest.raises(AttachmentError, match=r"SlicedAttnProcessor.* 0 times.*disable_attention_slicing"):
        attn(torch.randn(TOKENS))


def test_the_processor_can_be_copied_and_saved() -> None:
    attn, states = attention(), torch.randn(TOKENS)
    attn.set_processor(CoeffAttnProcessor(attn.processor))
    attn.processor.act(torch.randn(HEADS, HEADS))
    on = attn(states)
    for twin in (copy.deepcopy(attn), pickle.loads(pickle.dumps(attn))):
        assert torch.equal(twin(states), on)
        twin.processor.act(None)
        assert not torch.allclose(twin(states), on)
    assert torch.equal(attn(states), on)
