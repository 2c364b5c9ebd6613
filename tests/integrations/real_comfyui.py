"""ComfyUI itself, from a checkout: its UNet, its ModelPatcher, its CLIP and its sampling, without its server.

Of what ComfyUI requires, much is for other models. What is not installed here has an empty module in its place, so that
the checkout can be imported; using anything of such a module fails.
"""

import contextlib
import importlib
import importlib.util
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

OTHERS = (
    "torchsde", "torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchaudio",
    "torchaudio.transforms", "torchaudio.functional", "scipy", "scipy.stats", "scipy.integrate", "av",
    "av.container", "av.subtitles", "av.subtitles.stream", "kornia", "spandrel", "aiohttp", "alembic", "alembic.config",
    "sqlalchemy", "sqlalchemy.orm",
)  # fmt: skip


class Absent(types.ModuleType):
    """Has whatever is imported from it; nothing of that can be used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": _unusable})


def _unusable(self: Any, *args: Any, **kwargs: Any) -> None:
    raise RuntimeError(f"{type(self).__name__} belongs to a package that is not installed here")


def import_comfyui(checkout: Path) -> Any:
    """The package `comfy` of a checkout, on the CPU; its modules `nodes` and `folder_paths` are there then, too."""
    sys.path.insert(0, str(checkout))
    for name in ("CLIPTokenizer", "CLIPTextModel", "T5TokenizerFast", "LlamaTokenizerFast", "Qwen2Tokenizer"):
        getattr(transformers, name)  # what they ask of the packages that are there, they ask before the empty ones come
    absent = {name for name in OTHERS if "." not in name and importlib.util.find_spec(name) is None}
    sys.modules.update({name: Absent(name) for name in OTHERS if name.partition(".")[0] in absent})
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        import comfy.cli_args

        comfy.cli_args.args.cpu = True
        for part in ("model_patcher", "samplers", "sample", "sd", "sd1_clip", "sdxl_clip", "supported_models", "utils"):
            importlib.import_module(f"comfy.{part}")
        importlib.import_module("nodes")
    sys.path.remove(str(checkout))
    for name in [name for name, module in sys.modules.items() if isinstance(module, Absent)]:
        del sys.modules[name]  # other libraries look at what is installed
    return sys.modules["comfy"]


def unet_config(unet: Any) -> dict[str, Any]:
    """ComfyUI's config of a UNet of diffusers."""
    config, depths = unet.config, unet.config.transformer_layers_per_block
    levels = len(config.block_out_channels)
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    middle = depths[-1]
    depths = [n if "Attn" in kind else 0 for n, kind in zip(depths, config.down_block_types, strict=True)]
    count = config.layers_per_block
    return {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "dtype": torch.float32, "legacy": False,
        "model_channels": config.block_out_channels[0], "num_res_blocks": [count] * levels,
        "channel_mult": [n // config.block_out_channels[0] for n in config.block_out_channels],
        "use_spatial_transformer": True, "context_dim": config.cross_attention_dim,
        "transformer_depth": [n for n in depths for _ in range(count)], "transformer_depth_middle": middle,
        "transformer_depth_output": [n for n in depths for _ in range(count + 1)],
        "use_linear_in_transformer": config.use_linear_projection,
        "adm_in_channels": config.projection_class_embeddings_input_dim,
        **({"num_classes": "sequential"} if config.projection_class_embeddings_input_dim else {}),
    }  # fmt: skip


def new_model(comfy: Any, unet: Any, head_channels: int | None = None) -> Any:
    """ComfyUI's MODEL with the weights of a UNet of diffusers.

    Args:
        head_channels: as Stable Diffusion XL has it; None is 8 heads in all layers, as in 1.x.
    """
    wanted = unet_config(unet)
    family = comfy.supported_models.SDXL if wanted["adm_in_channels"] else comfy.supported_models.SD15
    config = family(wanted)
    if head_channels:
        config.unet_config["num_head_channels"] = head_channels
    base = (comfy.model_base.SDXL if wanted["adm_in_channels"] else comfy.model_base.BaseModel)(config)
    names = comfy.utils.unet_to_diffusers(wanted)
    weights = {names[name]: weight for name, weight in unet.state_dict().items()}
    base.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(base.eval(), load_device=cpu, offload_device=cpu)


def new_clip(comfy: Any, *encoders: Any) -> Any:
    """ComfyUI's CLIP with the weights of one text encoder of transformers, or of the two of Stable Diffusion XL."""
    sd1, xl = comfy.sd1_clip, comfy.sdxl_clip
    parts = dict(zip("lg", encoders, strict=False))
    kinds = (xl.SDXLTokenizer, xl.SDXLClipModel) if len(encoders) > 1 else (sd1.SD1Tokenizer, sd1.SD1ClipModel)
    target = types.SimpleNamespace(params={}, tokenizer=kinds[0], clip=kinds[1])
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    configs = {f"clip_{n}_model_config": {key: getattr(one.config, key) for key in keys} for n, one in parts.items()}
    clip = comfy.sd.CLIP(target, model_options={**configs, "dtype": torch.float32})
    for name, one in parts.items():
        weights = {key if key.startswith("text_") else f"text_model.{key}": w for key, w in one.state_dict().items()}
        assert getattr(clip.cond_stage_model, f"clip_{name}").load_sd(weights).unexpected_keys == []
    return clip


def encode(clip: Any, prompt: str) -> Any:
    """What the stock node CLIP Text Encode does."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def denoised(comfy: Any, model: Any, noise: Tensor, sigma: float, positive: Any, negative: Any, cfg: float) -> Tensor:
    """What ComfyUI's guider makes of noise at one step, through all that sampling sets up."""

    class OneCall(comfy.samplers.Sampler):  # type: ignore[misc]
        def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: Any, *_: Any, **__: Any) -> Any:
            return model_wrap(noise, sigmas[:1].expand(len(noise)), **extra_args)

    sigmas, latent = torch.tensor([sigma, 0.0]), torch.zeros_like(noise)
    with torch.no_grad():
        found = comfy.samplers.sample(
            model, noise, positive, negative, cfg, model.load_device, OneCall(), sigmas,
            model_options=model.model_options, latent_image=latent, disable_pbar=True,
        )  # fmt: skip
    return model.get_model_object("latent_format").process_in(found)
