"""Small networks of many kinds, with what they take: real classes of diffusers and transformers, random weights."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from coeff_diffusion.method.sites import Site, find_sites

BATCH, TOKENS = 2, 5
Network = tuple[Any, dict[str, Any]]
CROSS_BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "sample_size": 8,
}


def time() -> Tensor:
    return torch.full((BATCH,), 500)


def text(channels: int = 32) -> Tensor:
    return torch.randn(BATCH, TOKENS, channels)


def picture(channels: int = 4, side: int = 4) -> Tensor:
    return torch.randn(BATCH, channels, side, side)


def stable_diffusion() -> Network:
    model = diffusers.UNet2DConditionModel(attention_head_dim=(4, 8), **CROSS_BLOCKS)
    return model, {"sample": picture(), "timestep": 500, "encoder_hidden_states": text()}


def stable_diffusion_xl() -> Network:
    model = diffusers.UNet2DConditionModel(
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        **CROSS_BLOCKS,
    )
    added = {"text_embeds": torch.randn(BATCH, 16), "time_ids": torch.ones(BATCH, 6)}
    return model, {
        "sample": picture(), "timestep": 500, "encoder_hidden_states": text(), "added_cond_kwargs": added,
    }  # fmt: skip


def animate_diff() -> Network:
    """Spatial layers see the frames of all samples as one batch, motion layers the places of all pictures."""
    blocks = {key: value for key, value in CROSS_BLOCKS.items() if "types" not in key}
    model = diffusers.UNetMotionModel(
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=4,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
        **blocks,
    )
    for name, parameter in model.named_parameters():
        if "motion_modules" in name and "proj_out" in name:
            torch.nn.init.normal_(parameter, std=0.1)  # zero at first: nothing would come out
    texts = text().repeat_interleave(3, 0)  # one for each frame, as the pipeline gives them
    return model, {"sample": torch.randn(BATCH, 4, 3, 4, 4), "timestep": 500, "encoder_hidden_states": texts}


def kandinsky_2() -> Network:
    model = diffusers.UNet2DConditionModel(
        **{
            **CROSS_BLOCKS,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        },
        attention_head_dim=8,
        addition_embed_type="image",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=12,
        encoder_hid_dim_type="image_proj",
        resnet_time_scale_shift="scale_shift",
    )
    return model, {
        "sample": picture(), "timestep": 500, "encoder_hidden_states": None,
        "added_cond_kwargs": {"image_embeds": torch.randn(BATCH, 12)},
    }  # fmt: skip


def stable_cascade() -> Network:
    blocks = ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock")
    model = diffusers.StableCascadeUNet(
        in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(16, 32), num_attention_heads=(2, 4),
        down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1), block_types_per_layer=(blocks, blocks),
        clip_text_in_channels=12, clip_text_pooled_in_channels=12, clip_image_in_channels=12,
        switch_level=(False,),
    )  # fmt: skip
    torch.nn.init.normal_(model.clf[1].weight, std=0.1)  # zero at first: nothing would come out
    return model, {
        "sample": picture(), "timestep_ratio": torch.full((BATCH,), 0.5),
        "clip_text_pooled": torch.randn(BATCH, 1, 12), "clip_text": text(12), "clip_img": torch.randn(BATCH, 1, 12),
    }  # fmt: skip


def stable_diffusion_3() -> Network:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return model, {
        "hidden_states": picture(side=8), "timestep": time(), "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(BATCH, 16),
    }  # fmt: skip


def flux() -> Network:
    model = diffusers.FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 16, 4), "timestep": time() / 1000, "encoder_hidden_states": text(),
        "pooled_projections": torch.randn(BATCH, 16), "img_ids": torch.rand(16, 3), "txt_ids": torch.zeros(TOKENS, 3),
    }  # fmt: skip


def flux_2() -> Network:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, timestep_guidance_channels=32, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 16, 4), "timestep": time() / 1000, "encoder_hidden_states": text(),
        "img_ids": torch.rand(16, 4), "txt_ids": torch.zeros(TOKENS, 4), "guidance": torch.ones(BATCH),
    }  # fmt: skip


def pixart() -> Network:
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=32, caption_channels=32, sample_size=8, use_additional_conditions=False,
    )  # fmt: skip
    return model, {
        "hidden_states": picture(side=8), "timestep": time(), "encoder_hidden_states": text(),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }  # fmt: skip


def hunyuan_dit() -> Network:
    model = diffusers.HunyuanDiT2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=4, patch_size=2, sample_size=8, hidden_size=32,
        num_layers=2, cross_attention_dim=32, cross_attention_dim_t5=32, pooled_projection_dim=16, text_len=TOKENS,
        text_len_t5=TOKENS,
        use_style_cond_and_image_meta_size=False,
    )  # fmt: skip
    return model, {
        "hidden_states": picture(side=8), "timestep": time().float(), "encoder_hidden_states": text(),
        "text_embedding_mask": torch.ones(BATCH, TOKENS), "encoder_hidden_states_t5": text(),
        "text_embedding_mask_t5": torch.ones(BATCH, TOKENS),
        "image_rotary_emb": [torch.randn(16, 8), torch.randn(16, 8)],
    }  # fmt: skip


def qwen_image() -> Network:
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(8, 4, 4),
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(BATCH, 16, 16), "timestep": time() / 1000, "encoder_hidden_states": text(),
        "encoder_hidden_states_mask": torch.ones(BATCH, TOKENS), "img_shapes": [(1, 4, 4)] * BATCH,
    }  # fmt: skip


def z_image() -> Network:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=1, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[8, 4, 4], axes_lens=[64, 16, 16],
    )  # fmt: skip
    for parameter in (model.x_pad_token, model.cap_pad_token):
        torch.nn.init.normal_(parameter)  # made without values
    return model, {
        "x": [torch.randn(4, 1, 8, 8) for _ in range(BATCH)], "t": torch.full((BATCH,), 0.5),
        "cap_feats": [torch.randn(TOKENS, 16) for _ in range(BATCH)],
    }  # fmt: skip


def sana() -> Network:
    model = diffusers.SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=8, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=16, cross_attention_dim=32, caption_channels=32,
        sample_size=4,
    )  # fmt: skip
    return model, {"hidden_states": picture(), "timestep": time(), "encoder_hidden_states": text()}


def clip_text_encoder() -> Network:
    config = CLIPTextConfig(
        vocab_size=100, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=16, bos_token_id=98, eos_token_id=99, attn_implementation="sdpa",
    )  # fmt: skip
    return CLIPTextModel(config), {"input_ids": torch.randint(0, 98, (BATCH, TOKENS))}


NETWORKS: dict[str, Callable[[], Network]] = {
    make.__name__: make
    for make in (
        stable_diffusion, stable_diffusion_xl, animate_diff, kandinsky_2, stable_cascade, stable_diffusion_3, flux,
        flux_2, pixart, hunyuan_dit, qwen_image, z_image, sana, clip_text_encoder,
    )
}  # fmt: skip


def small_network(name: str) -> Network:
    """The network, frozen, and the arguments of a call."""
    model, inputs = NETWORKS[name]()
    return model.eval().requires_grad_(False), inputs


def sites_of(model: Any) -> dict[str, Site]:
    """The layers to recombine: all that have maps."""
    if isinstance(model, CLIPTextModel):
        return {
            path: Site(path, module, module.num_heads, "self")
            for path, module in model.named_modules()
            if path.endswith("self_attn")
        }
    linear = isinstance(model, diffusers.SanaTransformer2DModel)
    return {path: site for path, site in find_sites(model).items() if not (linear and site.kind == "self")}


def output_of(model: Any, inputs: dict[str, Any]) -> Tensor:
    """One tensor of all that comes out."""
    output = model(**inputs)[0]
    return torch.stack(output) if isinstance(output, list) else output
