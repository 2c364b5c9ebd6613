"""`torch.compile` of a UNet with recombination: the same numbers, the same gradients, nothing compiled twice."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import SlicedAttnProcessor
from small_networks import output_of, sites_of, small_network
from torch import Tensor
from torch._dynamo.utils import counters
from torch.overrides import _get_current_function_mode_stack

from coeff_diffusion import attach, trainable_parameters
from coeff_diffusion.method.attachment import activate, attach_heads, detach, layer_heads
from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.method.kernels import compiled, recombined_attention
from coeff_diffusion.method.override import CoeffAttnProcessor

# The compiler cannot look through the shape checks that the tests put around the function.
plain_attention = inspect.unwrap(recombined_attention)
pytestmark = pytest.mark.usefixtures("compiler")


def coefficients(unet: UNet2DConditionModel, seed: int, *samples: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    heads = layer_heads(unet).items()
    return {path: 0.3 * torch.randn(*samples, n, n, generator=generator) for path, n in heads}


def test_the_operator_is_a_good_citizen() -> None:
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (5, 6, 6))
    for coeff in (torch.randn(3, 3, requires_grad=True), torch.randn(2, 3, 3, requires_grad=True)):
        torch.library.opcheck(compiled.forward_op, (query, key, value, coeff, None, 0.5))
    torch.library.opcheck(
        compiled.forward_op, (query.detach(), key.detach(), value.detach(), torch.randn(3, 3), torch.randn(5, 6), 0.5)
    )


def test_compiled_in_one_piece() -> None:
    query, key, value = (torch.randn(2, 3, n, 4, requires_grad=True) for n in (5, 6, 6))
    coeff = torch.randn(3, 3, requires_grad=True)
    whole = torch.compile(plain_attention, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(
        torch.autograd.grad(whole(query, key, value, coeff).square().sum(), (query, key, value, coeff)),
        torch.autograd.grad(recombined_attention(query, key, value, coeff).square().sum(), (query, key, value, coeff)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_other_subjects_compile_nothing_again() -> None:
    unet, arguments = small_network("stable_diffusion")
    attach(unet, trainable=False)
    found = torch.compile(unet, backend="aot_eager")
    arguments["timestep"] = torch.tensor(500)
    frames = []
    for seed in (1, 2, 3):
        activate(unet, coefficients(unet, seed))
        torch.testing.assert_close(output_of(found, arguments), output_of(unet, arguments), rtol=1e-4, atol=1e-4)
        for _ in range(2):  # further steps of a drawing
            output_of(found, {**arguments, "timestep": torch.tensor(400)})
        frames.append(counters["stats"]["unique_graphs"])
    assert frames[0] == frames[1] == frames[2]


def test_training_through_the_compiler() -> None:
    unet, arguments = small_network("stable_diffusion")
    attach(unet.requires_grad_(False))
    parameters = trainable_parameters(unet)
    found = []
    for module in (torch.compile(unet, backend="aot_eager"), unet):
        loss = output_of(module, arguments).square().mean()
        found.append(torch.autograd.grad(loss, list(parameters.values())))
    for path, actual, expected in zip(parameters, *found, strict=True):
        assert expected.abs().max() > 0, path
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-8)


def whole(unet: Any) -> Any:
    return torch.compile(unet, backend="eager", fullgraph=True)


def in_place(unet: Any) -> Any:
    unet.compile(backend="eager", fullgraph=True)
    return unet


def block_by_block(unet: Any) -> Any:
    """As diffusers' `compile_repeated_blocks` does."""
    for module in unet.modules():
        if isinstance(module, BasicTransformerBlock):
            module.compile(backend="eager", fullgraph=True)
    return unet


@torch.no_grad()
@pytest.mark.parametrize("compile", [whole, in_place, block_by_block])
def test_what_is_attached_to_a_network_that_ran_compiled_acts(compile: Callable[[Any], Any]) -> None:
    """The compiler does not look at hooks again: without help it would go on with the base, in silence."""
    model, arguments = small_network("pixart")
    found = compile(model)
    base = output_of(found, arguments)
    for seed in (1, 2):
        attach(found, trainable=False)
        activate(found, coefficients(model, seed, 2))
        on = output_of(found, arguments)
        with torch.compiler.set_stance("force_eager"):
            torch.testing.assert_close(on, output_of(model, arguments))
        assert not torch.allclose(on, base, atol=1e-2)
        detach(found)
        assert torch.equal(output_of(found, arguments), base)
    gated = coefficients(model, 3, 2)
    for coeff in gated.values():
        coeff[0] = 0
    attach(found, trainable=False)
    activate(found, gated)
    on = output_of(found, arguments)
    assert torch.equal(on[0], base[0])
    assert not torch.allclose(on[1], base[1], atol=1e-2)


@torch.no_grad()
def test_equal_blocks_are_compiled_once() -> None:
    counts = []
    for attached in (False, True):
        torch._dynamo.reset()
        counters.clear()
        model, arguments = small_network("stable_diffusion_xl")
        if attached:
            attach_heads(model, sites_of(model), trainable=False)
            activate(model, {path: torch.randn(site.heads, site.heads) for path, site in sites_of(model).items()})
        output_of(block_by_block(model), arguments)
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[1]


@torch.no_grad()
def test_frames_of_a_sample_compile() -> None:
    class Folded(torch.nn.Module):
        """Two frames of each sample as one batch, as AnimateDiff calls its layers."""

        def __init__(self, layer: torch.nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    unet, _ = small_network("stable_diffusion")
    layer = sites_of(unet)["mid_block.attentions.0.transformer_blocks.0.attn1"]
    model = Folded(layer.module)
    attach_heads(model, [layer], trainable=False)
    activate(model, {layer.path: torch.randn(3, 8, 8) * torch.tensor([1, 0, 1])[:, None, None]})
    frames = torch.randn(3, 2, 5, 32)
    torch.testing.assert_close(whole(model)(frames), model(frames))


@torch.no_grad()
def test_a_layer_that_does_not_call_sdpa_is_an_error_when_compiled_too() -> None:
    model, arguments = small_network("pixart")
    attach(model, trainable=False)
    activate(model, coefficients(model, 1))
    model.set_attn_processor(SlicedAttnProcessor(2))
    with pytest.raises(AttachmentError, match="disable_attention_slicing"):
        output_of(torch.compile(model, backend="eager"), arguments)


@torch.no_grad()
def test_a_layer_that_breaks_the_graph_is_recombined_all_the_same() -> None:
    model, arguments = small_network("pixart")
    layer, failing = model.transformer_blocks[0].attn1, []

    class Breaking(type(layer.processor)):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            torch._dynamo.graph_break()
            if failing:
                raise KeyboardInterrupt
            return super().__call__(*args, **kwargs)

    attach(model, trainable=False)
    activate(model, coefficients(model, 1))
    expected = output_of(model, arguments)
    layer.set_processor(Breaking())
    found = torch.compile(model, backend="eager")
    torch.testing.assert_close(output_of(found, arguments), expected)
    failing.append(True)
    with pytest.raises(KeyboardInterrupt):
        output_of(found, arguments)
    failing.clear()
    torch.testing.assert_close(output_of(found, arguments), expected)
    assert _get_current_function_mode_stack() == []


@torch.no_grad()
def test_what_ctrl_c_leaves_does_nothing_in_compiled_code_either() -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    model, arguments = small_network("pixart")
    other, their_arguments = small_network("clip_text_encoder")
    base = output_of(other, their_arguments)
    attach(model, trainable=False)
    activate(model, coefficients(model, 1))
    model.transformer_blocks[0].attn1.to_k.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        output_of(model, arguments)
    torch.testing.assert_close(output_of(torch.compile(other, backend="eager"), their_arguments), base)
    detach(model)


@torch.no_grad()
def test_a_processor_set_by_hand_breaks_the_graph_and_acts() -> None:
    model, arguments = small_network("pixart")
    layer = model.transformer_blocks[0].attn1
    layer.set_processor(CoeffAttnProcessor(layer.processor))
    layer.processor.act(torch.randn(4, 4))
    expected = output_of(model, arguments)
    torch.testing.assert_close(output_of(torch.compile(model, backend="eager"), arguments), expected)
