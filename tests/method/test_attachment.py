"""What touches a UNet: attached it learns nothing but coefficients, detached it is as it was."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from coeff_diffusion.method import override as attention
from coeff_diffusion.method import recombination
from coeff_diffusion.method.attachment import (
    AttachmentError,
    CoeffConfig,
    activate,
    attach,
    collect,
    detach,
    is_attached,
    layer_heads,
    trainable_parameters,
)
from coeff_diffusion.method.override import CoeffAttnProcessor

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

    def run(unet: UNet2DConditionModel, rows: slice = slice(None)) -> Tensor:
        dtype = unet.dtype
        return unet(sample[rows].to(dtype), torch.tensor(500), context[rows].to(dtype)).sample

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


@torch.no_grad()
def test_detach_restores_bitwise(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base, state = predict(unet), {key: value.clone() for key, value in unet.state_dict().items()}
    processors, attributes = dict(unet.attn_processors), dict(unet.__dict__)
    attach(unet)
    learn(unet)
    predict(unet)
    detach(unet)
    assert torch.equal(predict(unet), base)
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert unet.__dict__.keys() == attributes.keys()
    assert not unet._forward_pre_hooks
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
    assert len(trainable_parameters(unet)) == len(layer_heads(unet, config)) == count
    ours = [name for name, one in unet.attn_processors.items() if isinstance(one, CoeffAttnProcessor)]
    assert ours == [f"{path}.processor" for path in trainable_parameters(unet)]


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


class Custom(AttnProcessor2_0):
    """Someone's own processor."""


@pytest.mark.parametrize("damage", ["processor", "added", "fused", "shared"])
def test_unknown_kinds_of_attention_are_an_error(unet: UNet2DConditionModel, damage: str) -> None:
    path = "mid_block.attentions.0.transformer_blocks.0.attn2"
    attn = unet.get_submodule(path)
    if damage == "processor":
        attn.set_processor(Custom())
    elif damage == "added":
        attn.added_kv_proj_dim = 8
    elif damage == "fused":
        unet.fuse_qkv_projections()
        unet.set_attn_processor(AttnProcessor2_0())
    else:
        attn.inner_kv_dim //= 2
    before = dict(unet.attn_processors)
    with pytest.raises(AttachmentError, match=r"cannot be recombined.*(attn2|attn1)"):
        attach(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in before.items())
    assert not is_attached(unet)


@pytest.mark.parametrize(
    "switch",
    [
        lambda pipe: pipe.enable_attention_slicing("max"),
        lambda pipe: pipe.unet.set_attn_processor(AttnProcessor()),
        lambda pipe: pipe.unet.set_attn_processor({name: AttnProcessor() for name in pipe.unet.attn_processors}),
        lambda pipe: pipe.unet.fuse_qkv_projections(),
        lambda pipe: [  # what xFormers does, on a machine that has it
            module.set_processor(AttnProcessor2_0())
            for module in pipe.unet.modules()
            if hasattr(module, "set_use_memory_efficient_attention_xformers") and hasattr(module, "set_processor")
        ],
    ],
    ids=["slicing", "set_attn_processor", "set_attn_processor with a dict", "fused projections", "xformers"],
)
def test_recombination_is_never_dropped_silently(
    tiny_pipe: StableDiffusionPipeline, predict: Callable[..., Tensor], switch: Callable[[Any], None]
) -> None:
    unet = tiny_pipe.unet
    attach(unet)
    switch(tiny_pipe)
    theirs = dict(unet.attn_processors)
    with pytest.raises(AttachmentError, match="has taken its place in down_blocks"):
        predict(unet)
    detach(unet)  # what was asked for last stays
    assert all(unet.attn_processors[name] is processor for name, processor in theirs.items())
    predict(unet)


@torch.no_grad()
def test_attention_slicing_before_it_is_kept(
    tiny_pipe: StableDiffusionPipeline, predict: Callable[..., Tensor]
) -> None:
    tiny_pipe.enable_attention_slicing("max")
    sliced = predict(tiny_pipe.unet)
    attach(tiny_pipe.unet)
    assert torch.equal(predict(tiny_pipe.unet), sliced)
    detach(tiny_pipe.unet)
    assert all(isinstance(one, SlicedAttnProcessor) for one in tiny_pipe.unet.attn_processors.values())


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
        with pytest.raises(AttachmentError, match="do not fit the UNet"):
            activate(unet, wrong)
    assert torch.equal(unet.get_submodule(path).processor.coeff, torch.ones(4, 4))


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


@torch.no_grad()
def test_a_deep_copy_stands_on_its_own(unet: UNet2DConditionModel, predict: Callable[..., Tensor]) -> None:
    base = predict(unet)
    attach(unet)
    twin = copy.deepcopy(unet)
    learn(twin)
    assert torch.equal(predict(unet), base)
    assert not torch.allclose(predict(twin), base, atol=1e-2)
    detach(twin)
    assert torch.equal(predict(twin), base)
    unet.set_attn_processor(AttnProcessor())
    with pytest.raises(AttachmentError, match="has taken its place"):
        predict(unet)


@torch.no_grad()
def test_compiled_once_for_all_coefficients(predict: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests check shapes at these calls, which is nothing to compile.
    for module, name in ((attention, "recombined_attention"), (recombination, "recombined_attention")):
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    monkeypatch.setattr(recombination, "recombine", inspect.unwrap(recombination.recombine))
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    unet = UNet2DConditionModel(
        block_out_channels=(16,),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        attention_head_dim=4,
        cross_attention_dim=32,
        norm_num_groups=8,
    ).eval()
    attach(unet, trainable=False)
    activate(unet, {path: coeff[0] for path, coeff in per_sample(unet).items()})
    expected = predict(unet)
    compiled = torch.compile(unet, backend=count, fullgraph=True)
    torch.testing.assert_close(predict(compiled), expected)
    activate(compiled, {path: coeff[0] for path, coeff in per_sample(unet).items()})
    assert not torch.allclose(predict(compiled), expected, atol=1e-2)
    assert len(graphs) == 1
    unet.set_attn_processor(AttnProcessor())
    with pytest.raises(AttachmentError, match="has taken its place"):
        predict(compiled)
