"""`torch.compile` of a UNet with recombination: the same numbers, the same gradients, nothing compiled twice."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from torch._dynamo.utils import counters

from coeff_diffusion import attach, trainable_parameters
from coeff_diffusion.method import override as attention
from coeff_diffusion.method.attachment import activate
from coeff_diffusion.method.kernels import compiled, recombined_attention

# The compiler cannot look through the shape checks that the tests put around the function.
plain_attention = inspect.unwrap(recombined_attention)


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(attention, "recombined_attention", plain_attention)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 4, 8, 8), torch.tensor(500), torch.randn(batch, 77, 32)


def predict(unet: Any, arguments: tuple[Tensor, ...]) -> Tensor:
    prediction: Tensor = unet(*arguments, return_dict=False)[0]
    return prediction


def coefficients(unet: UNet2DConditionModel, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layers = dict(unet.named_modules())
    paths = [path.removesuffix(".processor") for path in unet.attn_processors]
    return {path: 0.3 * torch.randn(layers[path].heads, layers[path].heads, generator=generator) for path in paths}


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


def test_other_subjects_compile_nothing_again(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet
    attach(unet, trainable=False)
    whole = torch.compile(unet, backend="aot_eager")
    arguments = inputs()
    with torch.no_grad():
        frames = []
        for seed in (1, 2, 3):
            activate(unet, coefficients(unet, seed))
            torch.testing.assert_close(predict(whole, arguments), predict(unet, arguments), rtol=1e-4, atol=1e-4)
            for _ in range(2):  # further steps of a drawing
                predict(whole, (arguments[0], torch.tensor(400), arguments[2]))
            frames.append(counters["stats"]["unique_graphs"])
    assert frames[0] == frames[1] == frames[2]


def test_training_through_the_compiler(tiny_pipe: StableDiffusionPipeline) -> None:
    unet = tiny_pipe.unet.requires_grad_(False)
    attach(unet)
    parameters = trainable_parameters(unet)
    arguments = inputs()
    found = []
    for module in (torch.compile(unet, backend="aot_eager"), unet):
        loss = predict(module, arguments).square().mean()
        found.append(torch.autograd.grad(loss, list(parameters.values())))
    for path, actual, expected in zip(parameters, *found, strict=True):
        assert expected.abs().max() > 0, path
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-8)
