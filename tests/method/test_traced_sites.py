"""Any network: its attention layers are found by running it, learn, are saved, and are given back."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import TOKENS, small_network
from test_recombination import talking_heads
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from coeff_diffusion import (
    AttachmentError,
    Coefficients,
    activate,
    attach,
    attach_heads,
    collect,
    detach,
    trace_sites,
    trainable_parameters,
)
from coeff_diffusion.method.sites import find_sites

HEADS = 4


def vision_transformer(attention: str = "sdpa") -> tuple[Any, dict[str, Any]]:
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=HEADS, intermediate_size=32, image_size=8,
        patch_size=4, num_channels=1, num_labels=3, attn_implementation=attention,
    )  # fmt: skip
    return ViTForImageClassification(config).eval(), {"pixel_values": torch.randn(2, 1, 8, 8)}


def language_model() -> tuple[Any, dict[str, Any]]:
    """Causal, and two query heads share a key head."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=16, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(0, 20, (2, 7))}


PATHS = {
    vision_transformer: ["vit.layers.0.attention", "vit.layers.1.attention"],
    language_model: ["model.layers.0.self_attn", "model.layers.1.self_attn"],
}


@pytest.mark.parametrize("make", PATHS)
def test_a_transformer_learns_is_saved_and_given_back(make: Callable[[], Any], tmp_path: Path) -> None:
    model, inputs = make()
    model.requires_grad_(False)
    base = model(**inputs).logits
    hooks = [list(part._forward_hooks) + list(part._forward_pre_hooks) for part in model.modules()]
    sites = trace_sites(model, lambda: model(**inputs))
    assert [list(part._forward_hooks) + list(part._forward_pre_hooks) for part in model.modules()] == hooks
    assert [(path, site.heads, site.kind) for path, site in sites.items()] == [(p, HEADS, "self") for p in PATHS[make]]
    attach_heads(model, sites)
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, base)  # zero is the base
    parameters = trainable_parameters(model)
    optimizer, before = torch.optim.SGD(parameters.values(), lr=1.0), model.state_dict()
    model(**inputs).logits.square().sum().backward()
    optimizer.step()
    assert all(parameter.any() for parameter in parameters.values())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    with torch.no_grad():
        learned = model(**inputs).logits
    assert not torch.equal(learned, base)
    Coefficients(collect(model), denoiser="transformer").save(tmp_path / "learned.safetensors")
    detach(model)
    assert torch.equal(model(**inputs).logits, base)
    attach_heads(model, sites, trainable=False)
    activate(model, Coefficients.load(tmp_path / "learned.safetensors"))
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, learned)


@torch.no_grad()
def test_a_vision_transformer_is_talking_heads_of_x_transformers() -> None:
    """Each layer's attention as somebody else computes it, in a model whose own is put aside."""
    model, inputs = vision_transformer()
    sites = trace_sites(model, lambda: model(**inputs))
    coeffs = {path: 0.3 * torch.randn(HEADS, HEADS) for path in sites}
    attach_heads(model, sites, trainable=False)
    activate(model, coeffs)
    recombined = model(**inputs).logits
    detach(model)
    for path, site in sites.items():
        site.module.forward = attention_of(site.module, talking_heads(coeffs[path]))
    torch.testing.assert_close(model(**inputs).logits, recombined, rtol=1e-4, atol=1e-5)


def attention_of(layer: Any, attend: Any) -> Callable[..., Any]:
    """The forward of a ViT's attention, with `attend` in place of what it calls."""

    def forward(hidden: Tensor, *args: Any, **options: Any) -> tuple[Tensor, None]:
        shape = (*hidden.shape[:2], HEADS, -1)
        projected = (p(hidden).view(shape).transpose(1, 2).double() for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        return layer.o_proj(attend(*projected)[0].transpose(1, 2).flatten(2).to(hidden.dtype)), None

    return forward


@torch.no_grad()
def test_a_causal_model_does_not_look_ahead() -> None:
    model, inputs = language_model()
    sites = trace_sites(model, lambda: model(**inputs))
    attach_heads(model, sites, trainable=False)
    activate(model, {path: torch.randn(HEADS, HEADS) for path in sites})
    other = inputs["input_ids"].clone()
    other[:, -1] = (other[:, -1] + 1) % 20
    before, after = model(**inputs).logits, model(input_ids=other).logits
    torch.testing.assert_close(before[:, :-1], after[:, :-1])
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_in_a_network_of_diffusers_the_layers_are_the_same() -> None:
    for name in ("stable_diffusion", "flux", "clip_text_encoder"):
        model, inputs = small_network(name)
        found = trace_sites(model, lambda model=model, inputs=inputs: model(**inputs))
        assert all(site.module is model.get_submodule(path) for path, site in found.items())
        if name != "clip_text_encoder":
            assert {p: s.heads for p, s in found.items()} == {p: s.heads for p, s in find_sites(model).items()}
    assert len(trace_sites(model, lambda: model(**inputs), ["*.layers.1.*"])) == 1


# --- what cannot be recombined says what was found --------------------------------------------------------------------


class Layer(nn.Module):
    """Attention of as many heads of queries and of keys as asked for, called so many times."""

    def __init__(self, calls: int = 1, keys: int = HEADS, flat: bool = False) -> None:
        super().__init__()
        self.calls, self.keys, self.flat = calls, keys, flat

    def forward(self, x: Tensor) -> Any:
        query, key = torch.randn(2, HEADS, TOKENS, 8), torch.randn(2, self.keys, TOKENS, 8)
        for _ in range(self.calls):
            scaled_dot_product_attention(*((query[0], key[0], key[0]) if self.flat else (query, key, key)))
        return x


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer(calls=0), r"no layer of this Sequential called PyTorch's scaled_dot_product_attention while it ran"),
        (Layer(calls=2), r"of the Sequential cannot.*: 0 called scaled_dot_product_attention 2 times.*expected once"),
        (Layer(flat=True), r"0 has a query of \[4, 5, 8\], expected \[batch, heads, tokens, channels\]"),
        (nn.TransformerEncoderLayer(8, 2), r"self_attn compute theirs in one piece \(nn.MultiheadAttention\)"),
    ],
)
def test_layers_that_do_not_fit_are_errors(layer: nn.Module, message: str) -> None:
    with pytest.raises(AttachmentError, match=message):
        trace_sites(model := nn.Sequential(layer), lambda: model(torch.randn(2, TOKENS, 8)))


def test_key_heads_that_do_not_go_into_query_heads_are_errors() -> None:
    layer = Layer()
    model = nn.Sequential(layer)
    sites = trace_sites(model, lambda: model(torch.randn(1)))
    attach_heads(model, sites, trainable=False)
    activate(model, {"0": torch.ones(HEADS, HEADS)})
    layer.keys = 3
    with pytest.raises(AttachmentError, match="0 has 4 heads of queries, but 3 of keys, expected as many or, grouped"):
        model(torch.randn(1))


def test_a_model_of_transformers_that_computes_attention_otherwise_is_an_error() -> None:
    model, inputs = vision_transformer("eager")
    with pytest.raises(AttachmentError, match=r"its attention is 'eager'; load it with attn_implementation=\"sdpa\""):
        trace_sites(model, lambda: model(**inputs))


def test_other_mistakes_are_errors() -> None:
    model, inputs = small_network("stable_diffusion")
    with pytest.raises(AttachmentError, match=r"no attention layer matches blocks=\['vit.*'\]; this UNet2D.* has 8"):
        trace_sites(model, lambda: model(**inputs), ["vit.*"])
    with pytest.raises(ZeroDivisionError):  # what the run raises comes through, and nothing is left behind
        trace_sites(model, lambda: 1 // 0)
    assert not any(part._forward_hooks for part in model.modules())
    attach(model)
    with pytest.raises(AttachmentError, match="recombination is attached to this UNet2DConditionModel; detach it"):
        trace_sites(model, lambda: model(**inputs))
