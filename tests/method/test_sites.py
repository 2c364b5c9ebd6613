"""Where the attention layers are, by diffusers' own account."""

import diffusers
import pytest
import torch
from small_networks import NETWORKS, small_network

from coeff_diffusion.method.errors import AttachmentError
from coeff_diffusion.method.sites import find_sites

DIFFUSERS = [name for name in NETWORKS if name != "clip_text_encoder"]


@pytest.mark.parametrize("name", DIFFUSERS)
def test_paths_are_those_of_attn_processors(name: str) -> None:
    model, _ = small_network(name)
    sites = find_sites(model)
    if name not in ("stable_cascade", "z_image"):  # the two that have no `attn_processors`
        assert list(sites) == [path.removesuffix(".processor") for path in model.attn_processors]
    assert all(site.path == path and model.get_submodule(path) is site.module for path, site in sites.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stable_diffusion", {"down_blocks.0.attentions.0.transformer_blocks.0.attn1": ("self", 4, "down"),
                              "mid_block.attentions.0.transformer_blocks.0.attn2": ("cross", 8, "mid"),
                              "up_blocks.1.attentions.1.transformer_blocks.0.attn2": ("cross", 4, "up")}),
        ("kandinsky_2", {"down_blocks.1.attentions.0": ("joint", 4, "down")}),
        ("stable_cascade", {"down_blocks.0.2.attention": ("self", 2, "down")}),
        ("stable_diffusion_3", {"transformer_blocks.0.attn": ("joint", 4, ""),
                                "transformer_blocks.0.attn2": ("self", 4, "")}),
        ("flux", {"transformer_blocks.0.attn": ("joint", 2, ""), "single_transformer_blocks.0.attn": ("self", 2, "")}),
        ("pixart", {"transformer_blocks.0.attn1": ("self", 4, ""), "transformer_blocks.0.attn2": ("cross", 4, "")}),
        ("hunyuan_dit", {"blocks.0.attn2": ("cross", 4, "")}),
        ("qwen_image", {"transformer_blocks.1.attn": ("joint", 2, "")}),
        ("z_image", {"layers.0.attention": ("self", 2, "")}),
        ("sana", {"transformer_blocks.0.attn1": ("self", 4, ""), "transformer_blocks.0.attn2": ("cross", 2, "")}),
    ],
)  # fmt: skip
def test_what_is_known_of_a_layer(name: str, expected: dict[str, tuple[str, int, str]]) -> None:
    sites = find_sites(small_network(name)[0])
    for path, (kind, heads, stage) in expected.items():
        assert (sites[path].kind, sites[path].heads, sites[path].stage) == (kind, heads, stage)


def test_kinds_of_networks_that_call_their_heads_and_layers_otherwise() -> None:
    with torch.device("meta"):
        kandinsky = diffusers.Kandinsky5Transformer3DModel(num_text_blocks=1, num_visual_blocks=1)
        wan = diffusers.WanTransformer3DModel(num_layers=1)
        video = diffusers.LTXVideoTransformer3DModel(num_layers=1)
    found = {path: site.kind for path, site in find_sites(kandinsky).items()}
    assert found["visual_transformer_blocks.0.self_attention"] == "self"
    assert found["visual_transformer_blocks.0.cross_attention"] == "cross"
    for model in (wan, video):
        assert [site.kind for site in find_sites(model).values()] == ["self", "cross"]


def test_the_layers_of_a_compiled_model_are_the_models() -> None:
    model, _ = small_network("stable_diffusion")
    assert find_sites(torch.compile(model, backend="eager")) == find_sites(model)


def test_a_network_without_such_layers_is_an_error() -> None:
    with pytest.raises(AttachmentError, match=r"^CLIPTextModel has no attention layers.*expected.*attach_heads"):
        find_sites(small_network("clip_text_encoder")[0])


def test_a_layer_that_does_not_tell_its_heads_is_an_error() -> None:
    model, _ = small_network("pixart")
    del model.transformer_blocks[0].attn1.heads
    with pytest.raises(AttachmentError, match=r"transformer_blocks.0.attn1 \(Attention\) does not say how many heads"):
        find_sites(model)
