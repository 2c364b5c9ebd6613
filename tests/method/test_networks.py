"""Recombination in networks of many families, through whatever their layers do around their attention."""

from typing import Any

import pytest
import torch
from small_networks import NETWORKS, output_of, sites_of, small_network
from torch import Tensor

from coeff_diffusion.method import recombination
from coeff_diffusion.method.attachment import activate, attach_heads, detach, trainable_parameters
from coeff_diffusion.method.interception import Interceptor
from coeff_diffusion.method.sites import Site


class Counter(Interceptor):
    """Writes down the shapes of each call of one layer."""

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.counts: list[int] = []

    def attention(self, layer: Any, call: Any) -> Tensor:
        self.heads.append(call.query.shape[1])
        return call.plain()

    def finished(self, layer: Any, calls: int) -> None:
        self.counts.append(calls)


def random_coeffs(sites: dict[str, Site], samples: int | None = None) -> dict[str, Tensor]:
    shape = [] if samples is None else [samples]
    return {path: 0.5 * torch.randn(*shape, site.heads, site.heads) for path, site in sites.items()}


def recombined_by_the_reference(model: Any, inputs: Any, coeffs: dict[str, Tensor], sites: dict[str, Site]) -> Tensor:
    """What comes out where every layer's SDPA is replaced by hand."""

    class Reference(Interceptor):
        def __init__(self, coeff: Tensor) -> None:
            self.coeff = coeff

        def attention(self, layer: Any, call: Any) -> Tensor:
            call = call.spelled_out()
            return recombination.recombined_attention(*call[:3], self.coeff, call.attn_mask, call.scale)

    handles = [h for path, site in sites.items() for h in Reference(coeffs[path]).register(site.module)]
    output = output_of(model, inputs)
    for handle in handles:
        handle.remove()
    return output


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_recombined_and_given_back(name: str) -> None:
    model, inputs = small_network(name)
    sites = sites_of(model)
    with torch.no_grad():
        base = output_of(model, inputs)
        attach_heads(model, sites)
        assert torch.equal(output_of(model, inputs), base)  # zero is the base
        counters = {path: Counter() for path in sites}
        handles = [handle for path, one in counters.items() for handle in one.register(sites[path].module)]
        output_of(model, inputs)
        assert all((c.counts, c.heads) == ([1], [sites[path].heads]) for path, c in counters.items())
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(
        output_of(model, inputs).square().sum(), list(trainable_parameters(model).values())
    )  # from the first step on, where all is zero
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    with torch.no_grad():
        coeffs = random_coeffs(sites)
        activate(model, coeffs)
        on = output_of(model, inputs)
        assert not torch.allclose(on, base, atol=1e-3)
        activate(model, None)
        torch.testing.assert_close(on, recombined_by_the_reference(model, inputs, coeffs, sites), rtol=1e-3, atol=1e-4)
        coeffs = random_coeffs(sites, samples=2)
        for coeff in coeffs.values():
            coeff[1] = 0
        activate(model, coeffs)
        gated = output_of(model, inputs)
        assert torch.equal(gated[1], base[1])
        assert not torch.allclose(gated[0], base[0], atol=1e-3)
        detach(model)
        assert torch.equal(output_of(model, inputs), base)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(  # each takes seconds: one of every way in which a layer comes to its keys and values
    "name", ["stable_diffusion", "kandinsky_2", "stable_diffusion_3", "flux_2", "clip_text_encoder"]
)
@torch.no_grad()
def test_networks_compile_in_one_piece(name: str) -> None:
    model, inputs = small_network(name)
    attach_heads(model, sites_of(model), trainable=False)
    activate(model, random_coeffs(sites_of(model)))
    expected = output_of(model, inputs)
    whole = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(output_of(whole, inputs), expected)
