"""Pictures as other programs save them, with what they say of themselves in the chunks where these keep it."""

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image, PngImagePlugin

NEVER_IN_A_PROMPT = ("class_type", "sui_image_params", "positive_prompt", "widgets_values")
A1111 = (
    "a cat on grass\nNegative prompt: blurry\n"
    "Steps: 8, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 7, Size: 128x128, Model hash: 0123456789, "
    "Model: mymodel, VAE hash: 01, Clip skip: 2, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent, "
    'Variation seed: 9, Variation seed strength: 0.1, Lora hashes: "a: 1, b: 2", '
    "ADetailer model: face_yolov8n.pt, Version: v1.10.1"
)
SWARM: dict[str, Any] = {
    "sui_image_params": {
        "prompt": "a cat on grass", "negativeprompt": "blurry", "model": "a/mymodel", "seed": 7, "steps": 8,
        "cfgscale": 7.0, "width": 128, "height": 128, "sampler": "dpmpp_2m", "scheduler": "karras",
        "automaticvae": True, "variationseed": 3, "variationseedstrength": 0.1, "loras": ["x"], "swarm_version": "0.9",
    },
    "sui_extra_data": {"date": "2025-01-25"},
    "sui_models": [{"name": "mymodel.safetensors", "param": "model", "hash": "0x1"}],
}  # fmt: skip
FOOOCUS: dict[str, Any] = {
    "prompt": "a cat on grass", "negative_prompt": "blurry", "full_prompt": ["cinematic a cat on grass"],
    "styles": "['Fooocus V2']", "performance": "Speed", "steps": 8, "resolution": "(128, 128)", "guidance_scale": 7.0,
    "sharpness": 2.0, "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "mymodel", "base_model_hash": "01",
    "refiner_model": "None", "clip_skip": 1, "sampler": "dpmpp_2m", "scheduler": "karras", "seed": "7",
    "lora_combined_1": "a.safetensors : 0.1", "metadata_scheme": "fooocus", "version": "Fooocus v2.5.5",
}  # fmt: skip
INVOKE: dict[str, Any] = {
    "generation_mode": "sdxl_txt2img", "positive_prompt": "a cat on grass", "negative_prompt": "blurry", "width": 128,
    "height": 128, "seed": 7, "rand_device": "cpu", "cfg_scale": 7.0, "cfg_rescale_multiplier": 0.5, "steps": 8,
    "scheduler": "dpmpp_2m_k", "clip_skip": 0, "model": {"key": "1", "name": "mymodel", "base": "sd-1"},
    "controlnets": [], "loras": [{"model": {"name": "x"}, "weight": 0.5}], "app_version": "5.4.0",
}  # fmt: skip
OLD_INVOKE: dict[str, Any] = {
    "model": "stable diffusion", "model_weights": "mymodel", "model_hash": "01", "app_version": "2.3.5",
    "image": {
        "prompt": [{"prompt": "a cat on grass", "weight": 1.0}], "steps": 8, "cfg_scale": 7.0, "seed": 7, "width": 128,
        "height": 128, "sampler": "k_dpmpp_2", "type": "txt2img", "seamless": False, "threshold": 0.0, "perlin": 0.2,
    },
}  # fmt: skip
DREAM = '"a cat on grass" -s 8 -S 7 -W 128 -H 128 -C 7.0 -A k_dpmpp_2 -U 2.0'
NOVELAI: dict[str, Any] = {
    "prompt": "a cat on grass", "steps": 8, "height": 128, "width": 128, "scale": 7.0, "uncond_scale": 1.0,
    "cfg_rescale": 0.5, "seed": 7, "n_samples": 1, "noise_schedule": "karras", "sampler": "k_dpmpp_2m", "sm": True,
    "sm_dyn": False, "uc": "blurry", "request_type": "PromptGenerateRequest", "signed_hash": "0",
}  # fmt: skip
COMFY: dict[str, Any] = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 7, "steps": 8, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mymodel"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat on grass", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {
        "lora_name": "x.safetensors", "strength_model": 0.8, "strength_clip": 0.8, "model": ["4", 0],
        "clip": ["4", 1]}},
}  # fmt: skip
NODES = {  # the values of a node as the editor saves them
    "3": [7, "fixed", 8, 7.0, "dpmpp_2m", "karras", 1.0], "4": ["mymodel"], "5": [128, 128, 1], "6": ["a cat on grass"],
    "7": ["blurry"], "8": [], "9": ["ComfyUI"], "10": ["x.safetensors", 0.8, 0.8],
}  # fmt: skip


def workflow(graph: Mapping[str, Any] = COMFY, values: Mapping[str, Any] = NODES) -> dict[str, Any]:
    """The graph as the editor saves it."""
    nodes, links = [], []
    for name, node in graph.items():
        inputs = []
        for key, value in node["inputs"].items():
            if isinstance(value, list):
                links.append([len(links), int(value[0]), value[1], int(name), len(inputs), "ANY"])
                inputs.append({"name": key, "type": "ANY", "link": links[-1][0]})
        nodes.append({"id": int(name), "type": node["class_type"], "mode": 0, "inputs": inputs,
                      "widgets_values": values.get(name, [])})  # fmt: skip
    return {"last_node_id": 10, "nodes": nodes, "links": links, "version": 0.4}


TEXTS: dict[str, dict[str, Any]] = {
    "A1111": {"parameters": A1111},
    "SwarmUI": {"parameters": SWARM},
    "Fooocus": {"parameters": FOOOCUS, "fooocus_scheme": "fooocus"},
    "ComfyUI": {"prompt": COMFY, "workflow": {}},
    "ComfyUI's editor": {"workflow": workflow()},
    "InvokeAI": {"invokeai_metadata": INVOKE},
    "InvokeAI 2": {"sd-metadata": OLD_INVOKE, "Dream": DREAM},
    "InvokeAI 1": {"Dream": DREAM},
    "NovelAI": {"Software": "NovelAI", "Description": "a cat on grass", "Comment": NOVELAI},
}
"""By program: the chunks, JSON as what it holds."""


def picture(texts: Mapping[str, Any]) -> bytes:
    """A PNG with these texts."""
    info, file = PngImagePlugin.PngInfo(), io.BytesIO()
    for key, value in texts.items():
        info.add_text(key, value if isinstance(value, str) else json.dumps(value))
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()
