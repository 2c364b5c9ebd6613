"""Masks decide what of a picture counts: white and opaque is learned, black and transparent is not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion.images.photo import DatasetError, read_photo
from coeff_diffusion.training.dataset import Prompts, TrainingSet
from coeff_diffusion.training.latents import Latents, Pictures, encode_pictures
from coeff_diffusion.training.masks import mask_of
from coeff_diffusion.training.picture_folder import TrainingPicture
from coeff_diffusion.training.views import PictureViews


def half(mode: str = "L", size: tuple[int, int] = (32, 32)) -> Image.Image:
    """White on the left, black on the right."""
    image = Image.new("L", size, 0)
    image.paste(255, (0, 0, size[0] // 2, size[1]))
    return image.convert(mode)


@pytest.fixture
def subject(tmp_path: Path) -> Path:
    path = tmp_path / "1.png"
    Image.new("RGB", (32, 32), (200, 30, 30)).save(path)
    return path


def found(subject: Path, mask: Path | None) -> np.ndarray:
    image = mask_of(read_photo(subject), subject, mask)
    assert image is not None
    assert image.mode == "L"
    assert image.size == read_photo(subject).image.size
    return np.asarray(image)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_a_mask_of_any_mode(subject: Path, tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("m.tif" if mode == "CMYK" else "m.png")
    if mode == "I;16":
        Image.fromarray(np.asarray(half()).astype(np.uint16) * 257).save(path)
    else:
        half(mode).save(path)
    assert np.abs(found(subject, path).astype(int) - np.asarray(half())).max() <= 1


def test_what_is_transparent_in_a_mask_is_black(subject: Path, tmp_path: Path) -> None:
    mask = Image.new("RGBA", (32, 32), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 16, 32))
    mask.save(tmp_path / "m.png")
    assert np.array_equal(found(subject, tmp_path / "m.png"), np.asarray(half()))


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (33, 33), (200, 198)])
def test_a_mask_of_another_size_is_resized(subject: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    half(size=size).save(tmp_path / "m.png")
    values = found(subject, tmp_path / "m.png")
    assert (values[:, :14] == 255).all()
    assert (values[:, 18:] == 0).all()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (half(size=(64, 32)), r"m\.png has 64 x 32 pixels, its picture 32 x 32, another shape"),
        (Image.new("L", (32, 32), 0), r"m\.png has nothing white \(its brightest value is 0 of 255\)"),
        (Image.new("L", (32, 32), 1), r"m\.png has nothing white \(its brightest value is 1 of 255\)"),
        (Image.new("RGBA", (32, 32), (255, 255, 255, 0)), r"m\.png has nothing white"),
    ],
)
def test_useless_masks(subject: Path, tmp_path: Path, mask: Image.Image, message: str) -> None:
    mask.save(tmp_path / "m.png")
    with pytest.raises(DatasetError, match=message) as error:
        found(subject, tmp_path / "m.png")
    assert "\n" not in str(error.value)


def test_the_masks_of_pictures_that_were_turned(tmp_path: Path) -> None:
    """A mask fits the picture as it is seen."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "1.png", exif=exif)  # seen as 20 x 40
    half(size=(20, 40)).save(tmp_path / "m.png")
    assert found(tmp_path / "1.png", tmp_path / "m.png").shape == (40, 20)
    half(size=(40, 20)).save(tmp_path / "m.png")
    with pytest.raises(DatasetError, match="another shape"):
        found(tmp_path / "1.png", tmp_path / "m.png")


def test_transparency_is_a_mask(subject: Path, tmp_path: Path) -> None:
    assert mask_of(read_photo(subject), subject, None) is None
    image = Image.open(subject).convert("RGBA")
    image.putalpha(half())
    image.save(tmp_path / "cut.png")
    assert np.array_equal(found(tmp_path / "cut.png", None), np.asarray(half()))
    image.putalpha(0)
    image.save(tmp_path / "clear.png")
    with pytest.raises(DatasetError, match="transparent all over"):
        found(tmp_path / "clear.png", None)


# --- what training makes of them --------------------------------------------------------------------------------------


def views(path: Path, mask: Path | None, **changes: bool) -> PictureViews:
    settings = {"center_crop": False, "random_flip": False, "masks": True, **changes}
    pictures = [TrainingPicture(path, None, mask), TrainingPicture(path)]
    return PictureViews(pictures, 16, settings["center_crop"], settings["random_flip"], 8, 0, settings["masks"])


def test_weights_lie_where_the_mask_is_white(tiny_pipe: StableDiffusionPipeline, subject: Path, tmp_path: Path) -> None:
    half().save(tmp_path / "m.png")
    (latents,) = encode_pictures(tiny_pipe.vae, views(subject, tmp_path / "m.png", random_flip=True)).groups
    assert latents.weights is not None
    assert latents.weights.shape == (4, 1, 8, 8)  # plain and mirrored, of two pictures
    plain, mirrored, *whole = latents.weights[:, 0]
    assert (plain[:, :3] == plain.max()).all()
    assert (plain[:, 5:] == 0).all()
    assert torch.equal(mirrored, plain.flip(-1))
    assert torch.equal(torch.stack(whole), torch.ones(2, 8, 8))  # the other picture has none
    torch.testing.assert_close(plain.mean(), torch.tensor(1.0))  # every picture counts alike
    assert encode_pictures(tiny_pipe.vae, views(subject, tmp_path / "m.png", masks=False)).groups[0].weights is None
    assert encode_pictures(tiny_pipe.vae, views(subject, None)).groups[0].weights is None


def test_what_becomes_of_transparent_parts_is_said(subject: Path, tmp_path: Path) -> None:
    image = Image.open(subject).convert("RGBA")
    image.putalpha(half())
    image.save(tmp_path / "cut.png")
    half().save(tmp_path / "m.png")
    said = {
        "plain": views(subject, None)[0].notes,
        "cut out": views(tmp_path / "cut.png", None)[0].notes,
        "with a mask": views(tmp_path / "cut.png", tmp_path / "m.png")[0].notes,
        "masks off": views(tmp_path / "cut.png", None, masks=False)[0].notes,
    }
    assert said == {
        "plain": (),
        "cut out": ("cut.png: only what is not transparent is learned",),
        "with a mask": (),
        "masks off": ("cut.png: what is transparent is learned as white",),
    }


def test_parts_that_the_mask_hides_are_not_looked_at(tmp_path: Path) -> None:
    Image.new("RGB", (160, 16)).save(tmp_path / "wide.png")
    mask = Image.new("L", (160, 16), 0)
    mask.paste(255, (0, 0, 24, 16))
    mask.save(tmp_path / "m.png")
    seen = PictureViews([TrainingPicture(tmp_path / "wide.png", None, tmp_path / "m.png")], 16, False, False, 64, 0)[0]
    assert seen.weights is not None
    assert 0 < len(seen.weights) < 40
    assert all(weight.any() for weight in seen.weights)
    with pytest.raises(DatasetError, match=r"wide\.png: no part that training looks at shows what the mask keeps"):
        views(tmp_path / "wide.png", tmp_path / "m.png", center_crop=True)[0]


def test_batches_carry_the_weights_of_their_pictures() -> None:
    weights = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    instance = Latents(torch.arange(3.0).view(3, 1, 1, 1).expand(3, 4, 2, 2), None, (0, 1, 2, 3), weights)
    prior = Latents(torch.full((1, 4, 2, 2), 9.0), None, (0, 1))
    prompts = Prompts(lambda texts: {"x": torch.zeros(len(texts), 1)}, ["a", "b"], [False, False])
    data = TrainingSet(Pictures.of(instance), Pictures.of(prior), prompts, [0, 0, 0])
    (batch,) = data.batch(0, 3, 0, torch.Generator().manual_seed(0)).parts
    assert batch.weights is not None
    assert torch.equal(batch.weights[:3, 0], batch.latents[:3, 0])
    assert torch.equal(batch.weights[3:], torch.ones(3, 1, 2, 2))
