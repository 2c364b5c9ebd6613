"""What touches a UNet: attached it learns nothing but coefficients, detached it is as it was."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    XFormersAttnProcessor,
)
from peft import LoraConfig
from safetensors.torch import load_file
from small_networks import sites_of, small_network
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from coeff_diffusion.method.attachment import (
    AttachmentError,
    CoeffConfig,
    acting_coeffs,
    activate,
    attach,
    attach_heads,
    attached_layers,
    collect,
    detach,
    is_attached,
    layer_heads,
    select_layers,
    trainable_parameters,
)

UNET_15 = {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
UNET_21 = {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
    "sample_size": 96,
}


@pytest.fixture
def unet(tiny_pipe: StableDiffusionPipeline) -> UNet2DConditionModel:
    return tiny_pipe.unet


@pytest.fixture
def predict() -> Callable[..., Tensor]:
    """A UNet's output for three fixed samples, or some of them."""
    sample, context = torch.randn(3, 4, 8, 8), torch.randn(3, 7, 32)

    def run(unet: UNet2DConditionModel, rows: slice = slice(None), **options: Any) -> Tensor:
        dtype = unet.dtype
        return unet(sample[rows].to(dtype), torch.tensor(500), context[rows].to(dtype), **options).sample

    return run


def learn(unet: UNet2DConditionModel, scale: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in trainable_parameters(unet).values():
            parameter.normal_(std=scale)


def per_sample(unet: UNet2DConditionModel, samples: int = 3) -> dict[str, Tensor]:
    return {path: 0.3 * torch.randn(samples, heads, heads) for path, heads in layer_heads(unet).items()}


# --- nothing changes until it learns, and all comes back --------------------------------------------------------------


@torch.no_grad()
def test_fresh_attachment_is_the_base_bitwise(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base = predict(unet)
    attach(unet)
    assert torch.equal(predict(unet), base)
    learn(unet)
    assert not torch.allclose(predict(unet), base, atol=1e-2)
    for parameter in trainable_parameters(unet).values():
        parameter.zero_()
    assert torch.equal(predict(unet), base)


def traces(unet: UNet2DConditionModel) -> dict[str, Any]:
    """All that `attach` may leave behind."""
    return {
        path: (
            sorted(vars(module)),
            list(module._forward_hooks),
            list(module._forward_pre_hooks),
            list(module._forward_hooks_always_called),
            getattr(module, "processor", None),
        )
        for path, module in unet.named_modules()
    }


@torch.no_grad()
def test_detach_restores_bitwise(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base, state, before = predict(unet), {key: value.clone() for key, value in unet.state_dict().items()}, traces(unet)
    attach(unet)
    learn(unet)
    predict(unet)
    assert traces(unet) != before
    detach(unet)
    assert traces(unet) == before
    assert torch.equal(predict(unet), base)
    assert unet.state_dict().keys() == state.keys()
    assert all(torch.equal(unet.state_dict()[key], value) for key, value in state.items())


def test_while_attached_the_unet_is_still_the_stock_model(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor], tmp_path: Path
) -> None:
    keys = set(unet.state_dict())
    parameters = {id(parameter) for parameter in unet.parameters()}
    attach(unet)
    learn(unet)
    assert set(unet.state_dict()) == keys
    assert {id(parameter) for parameter in unet.parameters()} == parameters
    unet.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "diffusion_pytorch_model.safetensors")) == keys
    unet.requires_grad_(False)
    assert all(parameter.requires_grad for parameter in trainable_parameters(unet).values())


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casting_the_unet_leaves_the_coefficients_in_float32(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    attach(unet)
    learn(unet)
    exact, before = predict(unet), collect(unet)
    unet.to(dtype)
    output = predict(unet)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), exact, rtol=0.1, atol=0.1)
    after = trainable_parameters(unet)
    assert all(after[path].dtype == torch.float32 and torch.equal(after[path], before[path]) for path in before)


# --- what learns ------------------------------------------------------------------------------------------------------


def test_only_coefficients_get_gradients(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    unet.requires_grad_(False)
    attach(unet)
    predict(unet).square().mean().backward()
    assert all(parameter.grad is None for parameter in unet.parameters())
    gradients = [parameter.grad for parameter in trainable_parameters(unet).values()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)
    assert sum(gradient.numel() for gradient in gradients if gradient is not None) == 6 * 4**2 + 8 * 8**2


def test_gradient_checkpointing_gives_the_same_gradients(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor]
) -> None:
    unet.requires_grad_(False).train()
    attach(unet, CoeffConfig(dropout=0.2))
    learn(unet)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        torch.manual_seed(1)
        parameters = trainable_parameters(unet)
        gradients.append(torch.autograd.grad(predict(unet).square().mean(), list(parameters.values())))
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_collect_is_a_copy_in_the_order_of_the_unet(unet: UNet2DConditionModel) -> None:
    attach(unet)
    before = collect(unet)
    assert list(before) == [name.removesuffix(".processor") for name in unet.attn_processors]
    learn(unet)
    assert all(not coeff.any() and not coeff.requires_grad for coeff in before.values())
    assert all(torch.equal(coeff, trainable_parameters(unet)[path]) for path, coeff in collect(unet).items())


@pytest.mark.parametrize(
    ("options", "layers", "values"),
    [(UNET_15, 32, 2_048), (UNET_21, 32, 10 * 5**2 + 10 * 10**2 + 12 * 20**2)],
    ids=["Stable Diffusion 1.x", "Stable Diffusion 2.x"],
)
def test_topologies_of_real_bases(options: dict[str, Any], layers: int, values: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(**options)
    attach(unet)
    parameters = trainable_parameters(unet)
    assert len(parameters) == layers
    assert sum(parameter.numel() for parameter in parameters.values()) == values
    assert all(
        parameter.shape == (heads, heads)
        for parameter, heads in zip(parameters.values(), layer_heads(unet).values(), strict=True)
    )


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (CoeffConfig(), 14),
        (CoeffConfig("self"), 7),
        (CoeffConfig("cross"), 7),
        (CoeffConfig(blocks=("mid_block.*",)), 2),
        (CoeffConfig("cross", blocks=("mid_block.*", "up_blocks.1.*")), 3),
    ],
)
def test_which_layers_learn(unet: UNet2DConditionModel, config: CoeffConfig, count: int) -> None:
    attach(unet, config)
    assert len(trainable_parameters(unet)) == count
    assert attached_layers(unet) == select_layers(unet, config)
    assert list(attached_layers(unet)) == list(layer_heads(unet, config)) == list(trainable_parameters(unet))
    assert [path for path, module in unet.named_modules() if module._forward_hooks] == list(attached_layers(unet))


@pytest.mark.parametrize("options", [{"layers": "none"}, {"dropout": 1.0}, {"dropout": -0.1}])
def test_a_config_that_makes_no_sense_is_an_error(options: dict[str, Any]) -> None:
    with pytest.raises(AttachmentError, match=next(iter(options))):
        CoeffConfig(**options)


# --- errors leave the UNet as it was ----------------------------------------------------------------------------------


def test_no_matching_layer_is_an_error(unet: UNet2DConditionModel) -> None:
    with pytest.raises(
        AttachmentError, match=r"no attention layer matches.*nothing\.\*.*14, named like 'down_blocks\.0"
    ):
        attach(unet, CoeffConfig(blocks=("nothing.*",)))
    assert not is_attached(unet)


def test_attach_and_detach_only_once(unet: UNet2DConditionModel) -> None:
    with pytest.raises(AttachmentError, match="no recombination is attached"):
        detach(unet)
    attach(unet)
    with pytest.raises(AttachmentError, match="already attached"):
        attach(unet)
    detach(unet)
    with pytest.raises(AttachmentError, match="no recombination is attached"):
        trainable_parameters(unet)
    attach(unet, trainable=False)
    with pytest.raises(AttachmentError, match="not in training"):
        trainable_parameters(unet)


def test_what_is_no_diffusers_model_is_an_error() -> None:
    text_encoder, _ = small_network("clip_text_encoder")
    for model in (text_encoder, nn.Linear(2, 2)):
        with pytest.raises(AttachmentError, match=f"{type(model).__name__} has no attention layers that are known"):
            attach(model)
        with pytest.raises(AttachmentError, match=f"no recombination is attached to this {type(model).__name__}"):
            detach(model)
    with pytest.raises(AttachmentError, match="there are no layers to attach to"):
        attach_heads(text_encoder, {})


def test_layers_of_another_network_that_is_attached_are_an_error(unet: UNet2DConditionModel) -> None:
    attach(unet)
    block = unet.mid_block
    with pytest.raises(AttachmentError, match=r"already attached to attentions\.0.*attn1;.*attn2.*of another network"):
        attach_heads(block, sites_of(block))
    assert not is_attached(block)


@torch.no_grad()
def test_layers_of_any_network_in_any_container(predict: Callable[..., Tensor]) -> None:
    encoder, inputs = small_network("clip_text_encoder")
    sites = sites_of(encoder)
    base = encoder(**inputs)[0]
    attach_heads(encoder, list(sites.values()), trainable=False)
    activate(encoder, {next(iter(sites)): torch.randn(4, 4)})
    assert list(acting_coeffs(encoder)) == [next(iter(sites))]
    assert not torch.allclose(encoder(**inputs)[0], base, atol=1e-3)
    detach(encoder)
    assert torch.equal(encoder(**inputs)[0], base)


# --- what computes the layers -----------------------------------------------------------------------------------------


def ip_adapter(unet: UNet2DConditionModel) -> None:
    """Weights of an IP-Adapter, loaded by diffusers: 4 tokens of each picture."""
    heads = {"proj.weight": torch.randn(4 * 32, 6), "proj.bias": torch.zeros(4 * 32)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    cross = [layer for layer in select_layers(unet).values() if layer.is_cross_attention]
    layers = {
        f"{2 * number + 1}.to_{name}_ip.weight": torch.randn(layer.inner_dim, 32)
        for number, layer in enumerate(cross)
        for name in "kv"
    }
    unet._load_ip_adapter_weights([{"image_proj": heads | norm, "ip_adapter": layers}])


@torch.no_grad()
@pytest.mark.parametrize(
    "switch",
    [
        lambda unet: unet.set_attn_processor(AttnProcessor2_0()),
        lambda unet: unet.set_attn_processor({name: AttnProcessor2_0() for name in unet.attn_processors}),
        lambda unet: unet.fuse_qkv_projections(),
        lambda unet: unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights="gaussian")),
        lambda unet: (unet.set_attention_slice("max"), unet.set_attention_slice(None)),
        ip_adapter,
    ],
    ids=["set_attn_processor", "with a dict", "fused projections", "LoRA", "slicing and back", "IP-Adapter"],
)
def test_who_changes_the_layers_first_does_not_matter(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor], switch: Callable[[Any], Any]
) -> None:
    def draw(unet: UNet2DConditionModel) -> Tensor:
        pictures = {"image_embeds": [torch.ones(3, 1, 6)]} if switch is ip_adapter else None
        return predict(unet, added_cond_kwargs=pictures)

    coeffs, twin = per_sample(unet), copy.deepcopy(unet)
    for sample in coeffs.values():
        sample[1] = 0
    torch.manual_seed(3)
    attach(unet, trainable=False)
    activate(unet, coeffs)
    switch(unet)
    torch.manual_seed(3)
    switch(twin)
    attach(twin, trainable=False)
    activate(twin, coeffs)
    on, other_on = draw(unet), draw(twin)
    detach(unet)
    detach(twin)
    off, other_off = draw(unet), draw(twin)
    assert torch.equal(on, other_on)
    assert torch.equal(off, other_off)
    assert torch.equal(on[1], off[1])
    assert not torch.allclose(on[0], off[0], atol=1e-2)


SILENT = {
    "slicing": (lambda pipe: pipe.enable_attention_slicing("max"), r"pipe\.disable_attention_slicing\(\)"),
    "AttnProcessor": (
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        r"set_attn_processor\(AttnProcessor2_0",
    ),
    "xFormers": (
        lambda pipe: pipe.unet.set_attn_processor(XFormersAttnProcessor()),
        r"pipe\.disable_xformers_memory_efficient_attention\(\)",
    ),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_never_calls_sdpa_is_refused_before_anything_has_changed(
    tiny_pipe: StableDiffusionPipeline, what: str
) -> None:
    switch, remedy = SILENT[what]
    switch(tiny_pipe)
    before = traces(tiny_pipe.unet)
    with pytest.raises(AttachmentError, match=rf"14 of 14 attention layers cannot.*down_blocks.*{remedy}"):
        attach(tiny_pipe.unet)
    assert traces(tiny_pipe.unet) == before
    assert not is_attached(tiny_pipe.unet)


@torch.no_grad()
@pytest.mark.parametrize("what", ["slicing", "AttnProcessor"])  # xFormers needs a GPU to run
def test_recombination_is_never_dropped_silently(
    tiny_pipe: StableDiffusionPipeline, predict: Callable[..., Tensor], what: str
) -> None:
    unet, (switch, remedy) = tiny_pipe.unet, SILENT[what]
    attach(unet)
    learn(unet)
    switch(tiny_pipe)
    theirs = dict(unet.attn_processors)
    with pytest.raises(AttachmentError, match=rf"down_blocks.*attn1 \(\w+\) cannot.* 0 times.*{remedy}"):
        predict(unet)
    assert _get_current_function_mode_stack() == []
    detach(unet)  # what was asked for stays
    assert all(unet.attn_processors[name] is processor for name, processor in theirs.items())
    predict(unet)


@torch.no_grad()
def test_ctrl_c_leaves_nothing_once_detached(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base = predict(unet)
    attach(unet)
    learn(unet)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_k.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        predict(unet)
    handle.remove()
    detach(unet)
    assert _get_current_function_mode_stack() == []
    assert torch.equal(predict(unet), base)


@torch.no_grad()
def test_a_forward_of_somebody_elses_stays(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    """accelerate moves weights about by exchanging a module's forward."""
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    base = predict(unet)
    attach(unet)
    original = layer.forward
    calls = []
    layer.forward = lambda *args, **kwargs: (calls.append(1), original(*args, **kwargs))[1]
    theirs = layer.forward
    detach(unet)
    assert layer.forward is theirs
    assert torch.equal(predict(unet), base)
    assert calls == [1]


# --- what acts --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_each_sample_has_its_own_coefficients(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base = predict(unet)
    attach(unet, trainable=False)
    assert torch.equal(predict(unet), base)
    coeffs = per_sample(unet)
    activate(unet, coeffs)
    together = predict(unet)
    for i in range(3):
        activate(unet, {path: coeff[i] for path, coeff in coeffs.items()})
        torch.testing.assert_close(together[i : i + 1], predict(unet, slice(i, i + 1)), rtol=1e-4, atol=1e-5)
    activate(unet, None)
    assert torch.equal(predict(unet), base)


@torch.no_grad()
def test_a_sample_whose_matrices_are_zero_is_the_base_bitwise(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor]
) -> None:
    base = predict(unet)
    attach(unet, trainable=False)
    coeffs = per_sample(unet)
    activate(unet, coeffs)
    all_on = predict(unet)
    for coeff in coeffs.values():
        coeff[1] = 0
    activate(unet, coeffs)
    mixed = predict(unet)
    assert torch.equal(mixed[1], base[1])
    torch.testing.assert_close(mixed[[0, 2]], all_on[[0, 2]], rtol=1e-4, atol=1e-5)
    activate(unet, {path: torch.zeros_like(coeff) for path, coeff in coeffs.items()})
    assert torch.equal(predict(unet), base)


@torch.no_grad()
def test_trained_coefficients_can_be_switched_off_and_on(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor]
) -> None:
    base = predict(unet)
    attach(unet)
    learn(unet)
    on = predict(unet)
    activate(unet, None)
    assert torch.equal(predict(unet), base)
    activate(unet, trainable_parameters(unet))
    assert torch.equal(predict(unet), on)


def test_what_does_not_fit_is_an_error_and_changes_nothing(unet: UNet2DConditionModel) -> None:
    attach(unet, trainable=False)
    path = next(iter(layer_heads(unet)))
    activate(unet, {path: torch.ones(4, 4)})
    for wrong in ({"nowhere": torch.ones(4, 4)}, {path: torch.ones(8, 8)}, {path: torch.ones(4)}):
        with pytest.raises(AttachmentError, match="do not fit the UNet2DConditionModel"):
            activate(unet, wrong)
    assert {path: coeff.tolist() for path, coeff in acting_coeffs(unet).items()} == {path: torch.ones(4, 4).tolist()}


# --- beside others ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["lora first", "coefficients first"])
def test_together_with_lora(unet: UNet2DConditionModel, predict: Callable[..., Tensor], order: str) -> None:
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian")
    unet.requires_grad_(False)
    base = predict(unet)
    if order == "lora first":
        unet.add_adapter(lora)
        attach(unet)
    else:
        attach(unet)
        unet.add_adapter(lora)
    for name, parameter in unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    only_lora = predict(unet).detach()
    learn(unet)
    both = predict(unet)
    both.square().mean().backward()
    trained = [*trainable_parameters(unet).values(), *(p for n, p in unet.named_parameters() if "lora" in n)]
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trained)
    unet.disable_adapters()
    only_coeff = predict(unet).detach()
    outputs = [base, only_lora, only_coeff, both.detach()]
    assert all(not torch.allclose(outputs[i], outputs[j], atol=1e-3) for i in range(4) for j in range(i))
    detach(unet)
    with torch.no_grad():
        assert torch.equal(predict(unet), base)
        unet.enable_adapters()
        torch.testing.assert_close(predict(unet), only_lora, rtol=1e-3, atol=1e-4)


def saved_and_loaded(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    file = io.BytesIO()
    torch.save(unet, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded])
def test_a_copy_stands_on_its_own(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor], copied: Callable[[Any], Any]
) -> None:
    base = predict(unet)
    attach(unet)
    twin = copied(unet)
    learn(twin)
    assert torch.equal(predict(unet), base)
    on = predict(twin)
    assert not torch.allclose(on, base, atol=1e-2)
    detach(unet)
    assert torch.equal(predict(unet), base)
    assert torch.equal(predict(twin), on)
    detach(twin)
    assert torch.equal(predict(twin), base)
    assert list(traces(twin)) == list(traces(unet))
    assert not any(module._forward_hooks or "forward" in vars(module) for module in twin.modules())


@torch.no_grad()
def test_a_copy_of_what_is_being_differentiated_is_refused(
    unet: UNet2DConditionModel, predict: Callable[..., Tensor]
) -> None:
    attach(unet, trainable=False)
    path = next(iter(layer_heads(unet)))
    with torch.enable_grad():
        activate(unet, {path: torch.ones(4, 4, requires_grad=True) * 0.5})
    on = predict(unet)
    for copied in (copy.deepcopy, saved_and_loaded):
        with pytest.raises(AttachmentError, match="computed with gradients cannot be copied or pickled: down_blocks.0"):
            copied(unet)
    assert torch.equal(predict(unet), on)
    activate(unet, {path: torch.full((4, 4), 0.5)})
    assert torch.equal(predict(copy.deepcopy(unet)), on)
