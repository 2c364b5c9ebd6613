import json
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from single_file import write_original_checkpoint

from coeff_diffusion.families import load as pipeline
from coeff_diffusion.families.checkpoints import load_checkpoint
from coeff_diffusion.families.folders import files_to_fetch
from coeff_diffusion.families.load import BaseModelError, base_name, load_base
from coeff_diffusion.families.stable_diffusion import StableDiffusion


@pytest.fixture
def base_copy(tiny_base_dir: Path, tmp_path: Path) -> Path:
    """A base folder the test may damage."""
    return Path(shutil.copytree(tiny_base_dir, tmp_path / "copy"))


@pytest.fixture
def checkpoint(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    return write_original_checkpoint(tiny_pipe, tmp_path / "one.safetensors")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def rewrite_json(path: Path, change: Callable[[dict], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def weights(pipe: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text_encoder": pipe.text_encoder}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return torch.tensor(pipe("a dog", num_inference_steps=2, generator=generator, output_type="np").images)


def test_folder(tiny_base_dir: Path) -> None:
    pipe = load_base(tiny_base_dir)
    assert type(pipe) is StableDiffusionPipeline
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is None
    assert not any(module.training for part in (pipe.unet, pipe.vae, pipe.text_encoder) for module in part.modules())
    assert base_name(pipe) == tiny_base_dir.name
    assert all(value.dtype == torch.float32 for value in weights(pipe).values())


def test_dtype_by_name(tiny_base_dir: Path) -> None:
    assert load_base(tiny_base_dir, dtype="bfloat16").unet.dtype == torch.bfloat16
    for wrong in ("float33", "int8"):
        with pytest.raises(BaseModelError, match=f"dtype '{wrong}' is not a floating-point type"):
            load_base(tiny_base_dir, dtype=wrong)


def test_embedded(tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "embedded_path", lambda: tiny_base_dir)
    pipe = load_base()
    assert base_name(pipe) == "embedded"
    assert base_name(StableDiffusionPipeline.from_pretrained(tiny_base_dir, safety_checker=None)) == "embedded"
    with pytest.raises(BaseModelError, match="only means something for a Hub id"):
        load_base(revision="main")


@pytest.mark.parametrize("layout", ["fp16", "fp16 unet", "shards", "fp16 shards", "both"])
def test_the_layouts_that_people_publish(tiny_pipe: StableDiffusionPipeline, tmp_path: Path, layout: str) -> None:
    """Half precision alone, in one component alone, in pieces, beside the full weights."""
    folder, half = tmp_path / "base", tiny_pipe.to(torch.float16)
    pieces: dict[str, Any] = {"max_shard_size": "200KB"} if "shards" in layout else {}
    half.save_pretrained(folder, variant="fp16" if "fp16" in layout or layout == "both" else None, **pieces)
    if layout == "fp16 unet":
        for file in folder.glob("*/*.fp16.safetensors"):
            if file.parent.name != "unet":
                file.rename(file.with_name(file.name.replace(".fp16", "")))
    if layout == "both":
        half.to(torch.float32).save_pretrained(folder)
    if "shards" in layout:
        assert len(list(folder.glob("unet/*-of-*.safetensors"))) > 1
    found, expected = weights(load_base(folder)), weights(tiny_pipe)
    assert all(torch.equal(found[key].half(), value.half()) for key, value in expected.items())


def test_of_a_repository_one_set_of_weights_is_fetched() -> None:
    settings = [
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "text_encoder/config.json", "unet/config.json", "vae/config.json",
    ]  # fmt: skip
    unet = "unet/diffusion_pytorch_model"
    other = ["README.md", "v1-5-pruned.safetensors", "safety_checker/model.safetensors", f"{unet}.bin"]
    full = ["text_encoder/model.safetensors", f"{unet}.safetensors", "vae/diffusion_pytorch_model.safetensors"]
    half = [name.replace(".safetensors", ".fp16.safetensors") for name in full]
    shards = [f"{unet}-0000{i}-of-00002.safetensors" for i in (1, 2)] + [f"{unet}.safetensors.index.json"]
    pieces = [full[0], full[2], *shards]
    for there, wanted in [(full + half, full), (half, half), (pieces, pieces), (pieces + half, pieces)]:
        assert sorted(files_to_fetch([*settings, *other, *there], StableDiffusion())) == sorted([*settings, *wanted])


def test_single_checkpoint_is_the_folder(tiny_base_dir: Path, checkpoint: Path) -> None:
    folder, single = load_base(tiny_base_dir), load_base(checkpoint, config=tiny_base_dir)
    expected, found = weights(folder), weights(single)
    assert expected.keys() == found.keys()
    for key, value in expected.items():  # the checkpoint was written in half precision, as published ones are
        torch.testing.assert_close(found[key], value.half().float(), rtol=0, atol=0)
    assert dict(single.scheduler.config) == dict(folder.scheduler.config)
    assert (draw(single) - draw(folder)).abs().max() < 0.05
    assert base_name(single) == "one"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_single_checkpoint_is_read_in_the_type_that_is_asked_for(
    dtype: torch.dtype, tiny_base_dir: Path, checkpoint: Path
) -> None:
    """And not in float32 first, which would take twice the memory."""
    pipe = load_checkpoint(checkpoint, tiny_base_dir, dtype=dtype)
    assert {value.dtype for part in (pipe.unet, pipe.vae, pipe.text_encoder) for value in part.parameters()} == {dtype}


def test_single_checkpoint_without_configs_says_what_to_do(checkpoint: Path, no_hub: None) -> None:
    with pytest.raises(BaseModelError, match=r"holds weights only.*--base_config"):
        load_base(checkpoint)
    with pytest.raises(BaseModelError, match=r"config 'no/where' could not be fetched"):
        load_base(checkpoint, config="no/where")


def test_checkpoint_with_a_missing_weight(checkpoint: Path, tiny_base_dir: Path) -> None:
    whole = load_file(checkpoint)
    for key, message in {
        "model.diffusion_model.middle_block.0.in_layers.2.weight": "lacks weights that .* calls for",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight": "its text_encoder, first 'final_layer_norm",
    }.items():
        save_file({name: value for name, value in whole.items() if name != key}, checkpoint)
        with pytest.raises(BaseModelError, match=message):
            load_base(checkpoint, config=tiny_base_dir)


def test_checkpoint_of_another_size(checkpoint: Path, base_copy: Path) -> None:
    rewrite_json(base_copy / "unet" / "config.json", lambda data: data.update(block_out_channels=[32, 64]))
    with pytest.raises(BaseModelError, match="cannot be loaded as Stable Diffusion 1.x or 2.x"):
        load_base(checkpoint, config=base_copy)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "conditioner.embedders.1.model.ln_final.weight",
            r"lacks the UNet .*, the first text encoder .*; expected a whole checkpoint of .*Stable Diffusion XL",
        ),
        ("model.diffusion_model.double_blocks.0.img_attn.proj.weight", "is FLUX.1; expected"),
        ("model.diffusion_model.joint_blocks.0.x_block.attn.proj.weight", "is Stable Diffusion 3; expected"),
        ("distilled_guidance_layer.in_proj.bias", "is Chroma; expected"),
        ("double_stream_modulation_img.lin.weight", "is FLUX.2; expected"),
        ("blocks.0.cross_attn.q_linear.weight", "is PixArt; expected"),
        ("blocks.0.mlp.point_conv.conv.weight", "is Sana; expected"),
        ("model.diffusion_model.transformer_blocks.0.img_mod.1.weight", "is Qwen-Image; expected"),
        ("context_refiner.0.attention.qkv.weight", "is Z-Image or Lumina; expected"),
        ("conditioner.embedders.0.model.ln_final.weight", "is the Stable Diffusion XL refiner, which .*; expected"),
        ("unet_conv.weight", r"lacks .*; expected a whole checkpoint"),
        ("lora_unet_down_blocks_0_attentions_0.lora_up.weight", "is a LoRA, not a base"),
        ("unet/mid_block.attentions.0.transformer_blocks.0.attn1.coeff", "is a subject .*load it with --subject"),
        ("model.diffusion_model.input_blocks.0.0.weight", r"lacks the autoencoder \(first_stage_model"),
    ],
)
def test_other_checkpoints_are_named(key: str, message: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(BaseModelError, match=message):
        load_base(tmp_path / "x.safetensors")


def test_pickles_are_never_opened(tmp_path: Path, base_copy: Path) -> None:
    for name in ("x.ckpt", "x.bin", "x.pt"):
        torch.save({"state_dict": {}}, tmp_path / name)
        with pytest.raises(
            BaseModelError, match=r"holds a pickle, which can run any code .* expected a \.safetensors checkpoint"
        ):
            load_base(tmp_path / name)
    shutil.copy(tmp_path / "x.ckpt", tmp_path / "x.safetensors")
    with pytest.raises(BaseModelError, match="holds a pickle, which can run any code"):
        load_base(tmp_path / "x.safetensors")
    for file in base_copy.glob("*/*.safetensors"):
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    with pytest.raises(BaseModelError, match="holds pickled weights only"):
        load_base(base_copy)


def test_other_pipelines_are_named(base_copy: Path) -> None:
    for found, family in (("StableDiffusion3Pipeline", "Stable Diffusion 3"), ("FluxPipeline", "FLUX")):
        rewrite_json(base_copy / "model_index.json", lambda data, name=found: data.update(_class_name=name))
        with pytest.raises(BaseModelError, match=rf"{family} \({found}\); expected .*StableDiffusionPipeline"):
            load_base(base_copy)


@pytest.mark.filterwarnings("ignore")  # diffusers' about parts that the other pipeline does not take
def test_parts_of_another_family_are_named(base_copy: Path) -> None:
    rewrite_json(base_copy / "model_index.json", lambda data: data.update(_class_name="StableDiffusionXLPipeline"))
    with pytest.raises(BaseModelError, match=r"Stable Diffusion XL, but it has no text_encoder_2"):
        load_base(base_copy)


def test_parts_that_do_not_draw_from_text(base_copy: Path) -> None:
    tensors = load_file(base_copy / "unet" / "diffusion_pytorch_model.safetensors")
    tensors["conv_in.weight"] = torch.cat([tensors["conv_in.weight"]] * 2, dim=1)
    save_file(tensors, base_copy / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    rewrite_json(base_copy / "unet" / "config.json", lambda data: data.update(in_channels=2 * data["in_channels"]))
    with pytest.raises(BaseModelError, match="an inpainting, depth or upscaling model"):
        load_base(base_copy)


def test_damaged_folders(base_copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no model_index\.json"):
        load_base(base_copy / "unet")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "coefficients.safetensors").touch()
    with pytest.raises(BaseModelError, match="is a subject's folder, not a base"):
        load_base(tmp_path / "run")
    (base_copy / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BaseModelError, match="is damaged or incomplete"):
        load_base(base_copy)
    (base_copy / "model_index.json").write_text("{}")
    with pytest.raises(BaseModelError, match="does not name a pipeline"):
        load_base(base_copy)


@pytest.mark.parametrize("name", ["./nothing", "no/such/folder", "x.safetensors", "C:\\models\\sd", "nothing"])
def test_what_is_not_there(name: str) -> None:
    with pytest.raises(BaseModelError, match=r"a base is 'embedded', a diffusers folder, .* a Hub id"):
        load_base(name)


def test_hub_out_of_reach_is_one_clear_line(no_hub: None) -> None:
    with pytest.raises(BaseModelError) as error:
        load_base("nobody/nothing", revision="v2")
    assert "\n" not in str(error.value)
    assert "nobody/nothing (revision v2): not a folder here" in str(error.value)


def test_a_base_of_the_hub(
    tiny_base_dir: Path, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What drawing takes is fetched and nothing else; after that no Hub is needed, whatever else the repository has."""
    files = {path.relative_to(tiny_base_dir).as_posix(): path for path in tiny_base_dir.rglob("*") if path.is_file()}
    other = {
        "unet/diffusion_pytorch_model.bin": b"x",
        "unet/diffusion_pytorch_model.fp16.safetensors": b"x",
        "a.ckpt": b"x",
    }
    server.add("someone/tiny", {**{name: path.read_bytes() for name, path in files.items()}, **other})
    online = weights(load_base("someone/tiny"))
    assert not any(name in line for name in other for line in server.log)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    offline = weights(load_base("someone/tiny"))
    assert all(torch.equal(offline[key], value) for key, value in online.items())


def test_a_base_that_the_hub_does_not_give(server: HubServer) -> None:
    server.add("someone/gated", {"model_index.json": b"{}"}, gated=True)
    server.add("someone/subject", {"coefficients.safetensors": b"x"})
    for name, revision, why in [
        ("someone/gated", None, "someone/gated is gated: ask for access on"),
        ("someone/none", None, "there is no model repository someone/none that you may see"),
        ("someone/subject", None, "is not a diffusers repository"),
        ("someone/subject", "v9", "(revision v9): not a folder here, and someone/subject has no revision 'v9'"),
        ("some--one/none", None, "is no id of a repository"),
    ]:
        with pytest.raises(BaseModelError, match=re.escape(why)) as error:
            load_base(name, revision=revision)
        assert "\n" not in str(error.value)


def test_hub_repository_from_the_cache(tiny_base_dir: Path, tmp_path: Path) -> None:
    """A repository that was fetched before loads without a network, through the cache's own layout."""
    repo = tmp_path / "hub" / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(tiny_base_dir, repo / "snapshots" / ("0" * 40))
    code = (
        "from coeff_diffusion.families.load import base_name, load_base\n"
        "pipe = load_base('someone/tiny')\n"
        "print(base_name(pipe), pipe.unet.config.sample_size)\n"
    )
    # A process of its own: the Hub library reads its settings once, when it is imported.
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "someone/tiny"


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What diffusers logs, which goes past pytest otherwise."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


def test_bases_load_without_a_word(
    checkpoint: Path, tiny_base_dir: Path, said: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    load_base("embedded")
    load_base(checkpoint, config=tiny_base_dir, dtype="bfloat16")
    assert said.messages == []
    assert capfd.readouterr() == ("", "")
