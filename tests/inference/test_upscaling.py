"""Pictures that are made larger once they are drawn, and drawn again so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from coeff_diffusion.commands.generate import generate
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.generation_info import parse_parameters
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.inference.upscaling import Upscaler, load_upscaler


def draw(base: Path, folder: Path, **changes: Any) -> tuple[Path, list[str]]:
    lines: list[str] = []
    given = {"base": str(base), "output_dir": str(folder / "out"), **changes}
    return generate(GenerateConfig(**given), lines.append)[-1], [line for line in lines if line.startswith("note")]


def test_lanczos_makes_it_larger_and_the_file_draws_it_again(tiny_base_dir: Path, tmp_path: Path) -> None:
    settings = {"num_inference_steps": 2, "seed": 2}
    small, _ = draw(tiny_base_dir, tmp_path, prompt=["a dog"], settings=settings)
    large, _ = draw(tiny_base_dir, tmp_path, prompt=["a dog"], settings={**settings, "upscale": 2})
    with Image.open(small) as first, Image.open(large) as second:
        assert second.tobytes() == first.resize((32, 32), Image.Resampling.LANCZOS).tobytes()
    said = read_parameters(large)
    assert (said.width, said.upscale, said.upscaler) == (16, 2, "Lanczos")
    with Image.open(large) as picture:
        assert "Size: 16x16" in picture.info["parameters"]
        assert "Postprocess upscale by: 2, Postprocess upscaler: Lanczos" in picture.info["parameters"]
    again, notes = draw(tiny_base_dir, tmp_path, from_picture=str(large))
    with Image.open(again) as first, Image.open(large) as second:
        assert first.tobytes() == second.tobytes()
    assert notes == []
    plain, _ = draw(tiny_base_dir, tmp_path, from_picture=str(large), settings={"upscale": 1})
    with Image.open(plain) as first, Image.open(small) as second:
        assert first.tobytes() == second.tobytes()
    with pytest.raises(StudioError, match="say how many times with --upscale"):
        draw(tiny_base_dir, tmp_path, prompt=["a dog"], upscaler="x.safetensors")


@pytest.mark.parametrize(("text", "factor", "notes"), [("2.0", 2, 0), ("4", 4, 0), ("1.5", 1, 1)])
def test_what_others_write_is_read(text: str, factor: int, notes: int) -> None:
    found = parse_parameters(
        f"a\nSteps: 4, Seed: 1, Postprocess upscale by: {text}, Postprocess upscaler: R-ESRGAN 4x+"
    )
    assert (found.upscale, found.upscaler, len(found.notes)) == (factor, "R-ESRGAN 4x+", notes)


def test_pickles_and_strangers_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "RealESRGAN_x4.pth")
    with pytest.raises(StudioError, match=r"expected an upscaler as a \.safetensors file"):
        load_upscaler(tmp_path / "RealESRGAN_x4.pth", torch.device("cpu"))
    with pytest.raises(StudioError, match="there is no file"):
        load_upscaler(tmp_path / "nothing", torch.device("cpu"))


def test_a_network_makes_it_larger(tiny_base_dir: Path, tmp_path: Path) -> None:
    """A tiny one of RealESRGAN's own architecture, which knows nothing."""
    pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    file = tmp_path / "tiny.safetensors"
    save_file(
        {key: value.contiguous() for key, value in ESRGAN(num_filters=8, num_blocks=1).state_dict().items()}, file
    )
    upscaler = load_upscaler(file, torch.device("cpu"))
    image = Image.effect_noise((16, 24), 50).convert("RGB")
    assert upscaler.enlarged(image, image.size) is image
    assert [upscaler.enlarged(image, size).size for size in ((32, 48), (64, 96))] == [(32, 48), (64, 96)]
    assert upscaler.enlarged(image, (64, 96)).tobytes() != Upscaler().enlarged(image, (64, 96)).tobytes()
    settings = {"num_inference_steps": 2, "seed": 2, "upscale": 4}
    large, _ = draw(tiny_base_dir, tmp_path, prompt=["a dog"], settings=settings, upscaler=str(file))
    assert (read_parameters(large).upscaler, read_parameters(large).upscaler_hash) == ("tiny", upscaler.digits)
    again, notes = draw(tiny_base_dir, tmp_path, from_picture=str(large), upscaler=str(file))
    with Image.open(again) as first, Image.open(large) as second:
        assert first.tobytes() == second.tobytes()
    assert notes == []
    _, notes = draw(tiny_base_dir, tmp_path, from_picture=str(large))
    assert "was enlarged by 'tiny'" in notes[0]
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StudioError, match="is no upscaler that spandrel knows"):
        load_upscaler(tmp_path / "other.safetensors", torch.device("cpu"))
