"""Stable Diffusion XL in every form that people have it in."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from hub_server import HubServer
from safetensors.torch import load_file, save_file
from single_file import write_xl_checkpoint

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.families.checkpoints import usual_config
from coeff_diffusion.families.fingerprint import check_fits, fingerprint
from coeff_diffusion.families.folders import files_to_fetch
from coeff_diffusion.families.load import BaseModelError, load_base
from coeff_diffusion.families.process import training_schedule
from coeff_diffusion.families.stable_diffusion_xl import StableDiffusionXL
from coeff_diffusion.inference.request import DrawRequest, StudioError
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.method.sites import find_sites

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def folder(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> Path:
    tiny_xl_pipe.save_pretrained(tmp_path / "xl")
    return tmp_path / "xl"


@pytest.fixture
def checkpoint(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> Path:
    return write_xl_checkpoint(tiny_xl_pipe, tmp_path / "one.safetensors")


def weights(pipe: Any, *parts: str) -> dict[str, torch.Tensor]:
    return {f"{part}.{key}": value for part in parts for key, value in getattr(pipe, part).state_dict().items()}


def assert_same(pipe: Any, expected: Any, *parts: str) -> None:
    """Bit by bit, in the half precision that files have."""
    found, wanted = weights(pipe, *parts), weights(expected, *parts)
    assert found.keys() == wanted.keys()
    assert [key for key, value in wanted.items() if not torch.equal(found[key].half(), value.half())] == []


def test_a_single_checkpoint_is_the_folder(folder: Path, checkpoint: Path) -> None:
    single, whole = load_base(checkpoint, config=folder), load_base(folder)
    assert type(single) is StableDiffusionXLPipeline
    assert_same(single, whole, *PARTS)
    assert dict(single.scheduler.config) == dict(whole.scheduler.config)
    assert not torch.equal(single.text_encoder_2.text_projection.weight, torch.zeros(()))


@pytest.mark.parametrize("layout", ["fp16", "shards", "fp16 shards", "fp16 second text encoder"])
def test_the_layouts_that_people_publish(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path, layout: str) -> None:
    half, folder = tiny_xl_pipe.to(torch.float16), tmp_path / "base"
    pieces: dict[str, Any] = {"max_shard_size": "200KB"} if "shards" in layout else {}
    half.save_pretrained(folder, variant="fp16" if "fp16" in layout else None, **pieces)
    if "second" in layout:
        for file in folder.glob("*/*.fp16.safetensors"):
            if file.parent.name != "text_encoder_2":
                file.rename(file.with_name(file.name.replace(".fp16", "")))
    if "shards" in layout:
        assert len(list(folder.glob("unet/*-of-*.safetensors"))) > 1
    assert_same(load_base(folder), half, *PARTS)


def test_of_a_repository_both_encoders_are_fetched() -> None:
    full = [f"{part}/model.safetensors" for part in ("text_encoder", "text_encoder_2")]
    full += [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
    configs = [f"{part}/config.json" for part in PARTS] + ["tokenizer/vocab.json", "tokenizer_2/vocab.json"]
    other = ["sd_xl_base_1.0.safetensors", "vae_1_0/diffusion_pytorch_model.safetensors", "unet/model.onnx_data"]
    half = [name.replace(".safetensors", ".fp16.safetensors") for name in full]
    for there, wanted in ((full + half, full), (half, half)):
        found = files_to_fetch(["model_index.json", *configs, *there, *other], StableDiffusionXL())
        assert sorted(found) == sorted(["model_index.json", *configs, *wanted])


# --- the autoencoder --------------------------------------------------------------------------------------------------


@pytest.fixture
def other_vae(tiny_xl_pipe: StableDiffusionXLPipeline) -> Any:
    """Another one of the same shape."""
    vae = type(tiny_xl_pipe.vae).from_config(tiny_xl_pipe.vae.config)
    vae.register_to_config(force_upcast=False)
    return vae


@pytest.fixture(params=["folder", "folder of a base", "sgm", "whole checkpoint", "diffusers", "half"])
def vae_source(request: pytest.FixtureRequest, other_vae: Any, tiny_xl_pipe: Any, tmp_path: Path) -> Path:
    """The other one, as people keep it."""
    place = tmp_path / "vae"
    if request.param in ("folder", "half"):
        other_vae.half().save_pretrained(place, variant="fp16" if request.param == "half" else None)
        return place
    if request.param == "diffusers":
        save_file(other_vae.state_dict(), tmp_path / "vae.safetensors")
        return tmp_path / "vae.safetensors"
    tiny_xl_pipe.register_modules(vae=other_vae)
    if request.param == "folder of a base":
        tiny_xl_pipe.save_pretrained(place)
        return place
    path = write_xl_checkpoint(tiny_xl_pipe, tmp_path / "vae.safetensors")
    if request.param == "sgm":
        start = "first_stage_model."
        tensors = {key.removeprefix(start): value for key, value in load_file(path).items() if key.startswith(start)}
        save_file(tensors, path)
    return path


def test_another_autoencoder_takes_its_place(folder: Path, other_vae: Any, vae_source: Path) -> None:
    own, pipe = load_base(folder), load_base(folder, vae=vae_source)
    assert_same(pipe, own, "unet", "text_encoder", "text_encoder_2")
    expected = {key: value.half() for key, value in other_vae.state_dict().items()}
    assert all(torch.equal(value.half(), expected[key]) for key, value in pipe.vae.state_dict().items())
    assert not any(module.training for module in pipe.vae.modules())
    assert Studio(pipe).draw(DrawRequest("a dog", seed=1, steps=1))


def test_a_checkpoint_without_one_takes_another(
    tiny_xl_pipe: StableDiffusionXLPipeline, folder: Path, tmp_path: Path
) -> None:
    path = write_xl_checkpoint(tiny_xl_pipe, tmp_path / "one.safetensors", vae=False)
    with pytest.raises(BaseModelError, match=r"lacks the autoencoder .*--pretrained_vae_model_name_or_path"):
        load_base(path, config=folder)
    tiny_xl_pipe.vae.save_pretrained(tmp_path / "vae")
    for source in (tmp_path / "vae", folder):
        assert_same(load_base(path, config=folder, vae=source), tiny_xl_pipe, *PARTS)


def test_an_autoencoder_of_the_hub(
    folder: Path, other_vae: Any, tmp_path: Path, server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_vae.save_pretrained(tmp_path / "vae")
    files = {path.name: path.read_bytes() for path in (tmp_path / "vae").iterdir()}
    server.add("someone/vae", {**files, "sdxl.vae.safetensors": b"x"})
    server.add("someone/base", {f"vae/{name}": content for name, content in files.items()})
    for name in ("someone/vae", "someone/base"):
        found = load_base(folder, vae=name).vae
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in other_vae.state_dict().items())
    assert not any("sdxl.vae.safetensors" in line for line in server.log)
    server.add("someone/other", {"config.json": b"{}"})
    with pytest.raises(BaseModelError, match=r"someone/other has no diffusion_pytorch_model"):
        load_base(folder, vae="someone/other")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("someone/vae", "someone/base"):  # what was fetched once needs no Hub
        found = load_base(folder, vae=name).vae
        assert all(torch.equal(value, found.state_dict()[key]) for key, value in other_vae.state_dict().items())
    with pytest.raises(BaseModelError, match="nobody/vae: not a file or folder here, and the Hub is switched off"):
        load_base(folder, vae="nobody/vae")


def test_what_is_no_autoencoder(folder: Path, tmp_path: Path) -> None:
    save_file({"lora_unet.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    torch.save({}, tmp_path / "vae.pt")
    for source, message in {
        folder / "unet": "is 'UNet2DConditionModel', expected an autoencoder",
        folder / "tokenizer": "is no autoencoder",
        tmp_path / "lora.safetensors": "is no autoencoder like the one of this base",
        tmp_path / "vae.pt": "holds a pickle",
        tmp_path / "nothing.safetensors": "no autoencoder .*expected a diffusers folder",
    }.items():
        with pytest.raises(BaseModelError, match=message) as error:
            load_base(folder, vae=source)
        assert "\n" not in str(error.value)


def test_no_picture_is_black(folder: Path) -> None:
    """SDXL's own autoencoder overflows in float16: as here, where any decoder does."""
    pipe = load_base(folder)
    with torch.no_grad():
        pipe.vae.decoder.conv_out.weight.fill_(torch.inf)
    studio = Studio(pipe)
    with pytest.raises(StudioError, match=r"overflows in torch\.float32, .*--pretrained_vae_model_name_or_path"):
        studio.draw(DrawRequest("a dog", seed=1, steps=1))
    assert not pipe.vae.decoder._forward_hooks


# --- what it predicts, and which layers it has ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marks", "metadata", "expected"),
    [
        ((), {}, ("epsilon", False, "leading")),
        (("v_pred",), {}, ("v_prediction", False, "leading")),
        (("v_pred", "ztsnr"), {}, ("v_prediction", True, "trailing")),
        ((), {"modelspec.prediction_type": "v"}, ("v_prediction", False, "leading")),
        ((), {"modelspec.prediction_type": "epsilon"}, ("epsilon", False, "leading")),
    ],
)
def test_checkpoints_say_what_they_predict(
    folder: Path, checkpoint: Path, marks: tuple[str, ...], metadata: dict[str, str], expected: tuple[str, bool, str]
) -> None:
    save_file({**load_file(checkpoint), **{mark: torch.zeros(0) for mark in marks}}, checkpoint, metadata or None)
    scheduler = load_base(checkpoint, config=folder).scheduler
    config = scheduler.config
    found = (config.prediction_type, config.get("rescale_betas_zero_snr", False), config.timestep_spacing)
    assert found == expected
    schedule = training_schedule(config)
    assert schedule.config.prediction_type == expected[0]
    assert bool(schedule.alphas_cumprod[-1] < 1e-6) is expected[1]


LAYERS = {"Stable Diffusion XL": 140, "Stable Diffusion XL refiner": 88, "SSD-1B": 68, "Segmind Vega": 30}


@pytest.fixture(scope="module", params=list(LAYERS))
def published(request: pytest.FixtureRequest) -> tuple[str, Any]:
    with torch.device("meta"):
        return request.param, UNet2DConditionModel.from_config(dict(StableDiffusionXL.known[request.param]))


def test_published_topologies(published: tuple[str, Any]) -> None:
    title, unet = published
    assert len(find_sites(unet)) == LAYERS[title]
    family = StableDiffusionXL()
    assert family.recognizes(unet.config)
    config = json.loads(unet.to_json_string())  # as it stands in a folder: lists, and every default
    assert family.architecture(config) == StableDiffusionXL.names[title]
    assert len(fingerprint(unet)) == 64


def test_checkpoints_with_fewer_layers_bring_their_configs(published: tuple[str, Any], tmp_path: Path) -> None:
    """Told by the tensors alone; other XL checkpoints are left to diffusers."""
    title, unet = published
    depths = {"input": [], "output": []}
    for name, blocks in (("input", unet.down_blocks), ("output", unet.up_blocks)):
        for block in blocks:
            layers = getattr(block, "attentions", [None] * len(block.resnets))
            depths[name] += [0 if one is None else len(one.transformer_blocks) for one in layers]
            depths[name] += [0] * (name == "input")  # the downsampler has a place of its own
    places = {f"input_blocks.{i}": depth for i, depth in enumerate(depths["input"], start=1)}
    places |= {f"output_blocks.{i}": depth for i, depth in enumerate(depths["output"])}
    if unet.mid_block.attentions[:1]:
        places["middle_block"] = len(unet.mid_block.attentions[0].transformer_blocks)
    names = [
        f"model.diffusion_model.{place}.1.transformer_blocks.{number}.norm1.weight"
        for place, depth in places.items()
        for number in range(depth)
    ]
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "x.safetensors")
    homes = {"SSD-1B": "segmind/SSD-1B", "Segmind Vega": "segmind/Segmind-Vega"}
    assert usual_config(tmp_path / "x.safetensors", StableDiffusionXL()) == homes.get(title)


def test_fewer_layers_load_from_one_file(tiny_xl_pipe: StableDiffusionXLPipeline, tmp_path: Path) -> None:
    """As SSD-1B has them: no attention in the middle, other numbers on the way up than down."""
    changes = {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": (1, (2,)),
        "reverse_transformer_layers_per_block": ((1, 2), 1),
    }
    known = {key: value for key, value in tiny_xl_pipe.unet.config.items() if not key.startswith("_")}
    unet = UNet2DConditionModel.from_config({**known, **changes})
    tiny_xl_pipe.register_modules(unet=unet)
    tiny_xl_pipe.save_pretrained(tmp_path / "xl")
    path = write_xl_checkpoint(tiny_xl_pipe, tmp_path / "one.safetensors")
    assert_same(load_base(path, config=tmp_path / "xl"), tiny_xl_pipe, *PARTS)
    assert len(find_sites(unet)) == 2 * (2 + 1 + 2)


@pytest.mark.parametrize(
    ("part", "name"), [("0", "the first text encoder"), ("1", "the second text encoder"), ("", "the UNet")]
)
def test_checkpoints_that_lack_a_part(checkpoint: Path, folder: Path, part: str, name: str) -> None:
    start = f"conditioner.embedders.{part}." if part else "model.diffusion_model."
    save_file({key: value for key, value in load_file(checkpoint).items() if not key.startswith(start)}, checkpoint)
    with pytest.raises(BaseModelError, match=rf"lacks {name} .*; expected a whole checkpoint of ") as error:
        load_base(checkpoint, config=folder)
    assert "\n" not in str(error.value)


def test_a_subject_of_the_refiner_does_not_fit_the_base() -> None:
    """Told by the layers, without a weight of either."""
    with torch.device("meta"):
        unets = {title: UNet2DConditionModel.from_config(dict(StableDiffusionXL.known[title])) for title in LAYERS}
    subjects = {
        title: Coefficients(
            {path: torch.zeros(site.heads, site.heads) for path, site in find_sites(unet).items()},
            info=CoefficientsInfo(
                base_architecture=StableDiffusionXL.names[title], base_fingerprint=fingerprint(unet), trigger="sks dog"
            ),
        )
        for title, unet in unets.items()
    }
    for title, subject in subjects.items():
        for other, unet in unets.items():
            if title == other:
                check_fits(subject, unet)
                continue
            names = StableDiffusionXL.names
            with pytest.raises(
                CoefficientsError, match=rf"\({names[title]}, .* this base is {names[other]} with "
            ) as e:
                check_fits(subject, unet)
            assert "\n" not in str(e.value)


def test_the_refiner_is_named(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLImg2ImgPipeline"
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BaseModelError, match="is the Stable Diffusion XL refiner, which finishes pictures of a base"):
        load_base(folder)
