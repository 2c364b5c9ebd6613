import io
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, load_coefficients, loaded_coefficients
from coeff_diffusion.base import embedded_path
from coeff_diffusion.commands.card import make_card_file
from coeff_diffusion.commands.config import CardConfig
from coeff_diffusion.commands.output import OutputError
from coeff_diffusion.images.files import read_parameters, save_picture
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.images.png import read_chunks, with_chunks
from coeff_diffusion.method.attachment import layer_heads
from coeff_diffusion.sources.image_card import CHUNK, MAX_BYTES, MAX_SUBJECTS, as_png, chunks, embed, extract
from coeff_diffusion.sources.library import Library

GREY = Image.linear_gradient("L").resize((32, 24))


def png(image: Image.Image = GREY, text: str | None = None, **options: Any) -> bytes:
    file, info = io.BytesIO(), PngInfo()
    if text is not None:
        info.add_text("parameters", text)
    image.save(file, format="PNG", pnginfo=info, **options)
    return file.getvalue()


PNG = png()


def made(name: str, seed: int) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    coeffs = {f"down_blocks.{i}.attn1": torch.randn(4, 4, generator=generator) for i in range(2)}
    token = torch.randn(1, 8, generator=generator)
    return Coefficients(coeffs, {"text_encoder": token}, CoefficientsInfo(name=name, trigger=f"sks {name}"))


@pytest.fixture
def dog() -> Coefficients:
    return made("dog", 1)


@pytest.fixture
def cat() -> Coefficients:
    return made("cat", 2)


@pytest.fixture
def card(dog: Coefficients, tmp_path: Path) -> Path:
    path = tmp_path / "card.png"
    path.write_bytes(embed(PNG, [dog]))
    return path


# --- in and out -------------------------------------------------------------------------------------------------------


def test_a_card_holds_the_bytes_of_the_file_and_the_picture_as_it_was(dog: Coefficients, cat: Coefficients) -> None:
    found = embed(PNG, [dog, cat])
    assert read_chunks(found, (CHUNK,), 10**6, 2) == [(CHUNK, dog.to_bytes()), (CHUNK, cat.to_bytes())]
    assert found.startswith(PNG[:-12])
    assert found.endswith(PNG[-12:])
    assert len(found) == len(PNG) + sum(12 + len(subject.to_bytes()) for subject in (dog, cat))
    assert extract(found) == [dog, cat]
    assert extract(PNG) == []
    assert embed(embed(PNG, [dog]), [cat]) == found
    with Image.open(io.BytesIO(found)) as image:
        assert image.tobytes() == GREY.tobytes()


def test_a_pipeline_loads_a_card(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> None:
    subject = new_subject(vectors=1)
    path = save_picture(GREY, tmp_path / "card.png", chunks=chunks([subject]))
    assert load_coefficients(tiny_pipe, path, name="my dog") == "my dog"
    assert loaded_coefficients(tiny_pipe) == {"my dog": subject}


def test_a_card_is_read_wherever_a_file_is(card: Path, dog: Coefficients, tmp_path: Path) -> None:
    assert Coefficients.load(card) == dog
    assert Coefficients.load(str(card), name="dog") == dog
    library = Library(tmp_path / "library")
    assert library.add(card) == "card"
    assert Coefficients.load(library.path("card")) == dog


def test_a_saved_picture_carries_what_it_is_given(dog: Coefficients, tmp_path: Path) -> None:
    path = save_picture(
        GREY,
        tmp_path / "a.png",
        format_parameters(Parameters("a dog", seed=1, steps=20, guidance_scale=7.5)),
        chunks([dog]),
    )
    assert extract(path) == [dog]
    assert read_parameters(path).prompt == "a dog"


def test_one_of_several_has_to_be_named(dog: Coefficients, cat: Coefficients, tmp_path: Path) -> None:
    other_dog = cat.replace(info=replace(dog.info, trigger="my cat"))
    path = tmp_path / "card.png"
    path.write_bytes(embed(PNG, [dog, cat, other_dog]))
    assert Coefficients.load(path, name="cat") == cat
    with pytest.raises(CoefficientsError, match=rf"3 subjects: 'dog' \({dog.sha256[:12]}\), 'cat' .*name=") as error:
        Coefficients.load(path)
    assert "import the picture on the page" in str(error.value)  # for those who have no Python at hand
    assert "\n" not in str(error.value)
    with pytest.raises(CoefficientsError, match="several subjects called 'dog'"):
        Coefficients.load(path, name="dog")
    assert Coefficients.load(path, name=dog.sha256[:12]) == dog
    with pytest.raises(CoefficientsError, match=r"no subjects called 'bird'; there is 'dog'"):
        Coefficients.load(path, name="bird")


def test_any_file_has_to_be_of_the_name_that_is_asked_for(dog: Coefficients, tmp_path: Path) -> None:
    dog.save(tmp_path / "a.safetensors")
    assert Coefficients.load(tmp_path / "a.safetensors", name="dog") == dog
    with pytest.raises(CoefficientsError, match=r"a.safetensors carries no subjects called 'cat'; there is 'dog'"):
        Coefficients.load(tmp_path / "a.safetensors", name="cat")


def test_a_picture_that_was_saved_again_says_what_happened(card: Path, tmp_path: Path) -> None:
    pytest.importorskip("zxingcpp")
    for name in ("again.png", "again.jpg"):
        with Image.open(card) as image:
            image.convert("RGB").save(tmp_path / name)
        with pytest.raises(CoefficientsError, match=rf"{name} .*carries no subject.*drop its chunks"):
            Coefficients.load(tmp_path / name)


def test_a_card_of_the_embedded_base_is_at_most_20_kb_larger(tmp_path: Path) -> None:
    folder = embedded_path()
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    width = json.loads((folder / "text_encoder" / "config.json").read_text())["hidden_size"]
    info = CoefficientsInfo(
        name="a subject with a rather long name",
        trigger="sks something",
        class_word="something",
        instance_prompt="a photo of sks something " * 4,
        base_model="embedded",
        base_fingerprint="0" * 64,
        base_sample=(-1.23456e-05,) * 16,
        base_architecture="stable-diffusion-v1",
        license="CC-BY-NC-SA-4.0",
        trained_with="coeff-diffusion 0.1.0",
    )
    coeffs = {path: torch.randn(heads, heads) for path, heads in layer_heads(unet).items()}
    subject = Coefficients(coeffs, {"text_encoder": torch.randn(1, width)}, info)
    parameters = Parameters(
        prompt="a photo of sks something " * 8,
        model="embedded",
        base_hash="0" * 12,
        seed=2**32 - 1,
        width=128,
        height=128,
        scheduler="DPM++ 2M SDE Karras",
        subjects={info.name: 0.123456789},
        hashes={info.name: subject.sha256[:12]},
    )
    plain = save_picture(GREY, tmp_path / "plain.png").stat().st_size
    made = save_picture(GREY, tmp_path / "card.png", format_parameters(parameters), chunks([subject])).stat().st_size
    assert made - plain <= 20 * 1024


def test_what_no_reader_would_take_is_not_written(dog: Coefficients) -> None:
    with pytest.raises(CoefficientsError, match=r"once, but 'dog' .* is there twice"):
        embed(PNG, [dog, dog])
    with pytest.raises(CoefficientsError, match=r"once, but 'dog' .* is there twice"):
        embed(embed(PNG, [dog]), [dog])
    many = [made(f"dog {i}", i) for i in range(MAX_SUBJECTS)]
    full = embed(PNG, many)
    assert extract(full) == many
    with pytest.raises(CoefficientsError, match=f"at most {MAX_SUBJECTS} subjects, not {MAX_SUBJECTS + 1}"):
        embed(full, [dog])
    large = [
        Coefficients({}, {"text_encoder": torch.full((64, 8192), 0.01 * (i + 1))}, CoefficientsInfo(trigger="x"))
        for i in range(2)
    ]
    assert len(extract(embed(PNG, large[:1]))) == 1
    with pytest.raises(CoefficientsError, match=f"at most {MAX_BYTES} bytes of subjects"):
        embed(PNG, large)
    with pytest.raises(CoefficientsError, match="not a PNG"):
        embed(b"no picture", [dog])


# --- what strangers send ----------------------------------------------------------------------------------------------


def raw(content: bytes) -> bytes:
    return with_chunks(PNG, [(CHUNK, content)])


def bad_cards(dog: Coefficients) -> dict[str, tuple[bytes, str]]:
    file = dog.to_bytes()
    good = raw(file)
    place = good.index(CHUNK)
    flipped = bytearray(file)
    flipped[-1] ^= 1
    nan = file[:-4] + np.float32("nan").tobytes()
    return {
        "empty chunk": (raw(b""), "subject 1 of 1 in .*an empty file"),
        "pickle": (raw(b"\x80\x04\x95" + bytes(20)), "subject 1 of 1 in .*a pickle"),
        "flipped bit under a new checksum": (raw(bytes(flipped)), "changed or damaged: the hash"),
        "NaN": (raw(nan), "nan, expected finite"),
        "flipped bit": (good.replace(b"sks dog", b"sks eog", 1), "checksum of its coEf"),
        "no checksum": (good[:-16] + bytes(4) + good[-12:], "checksum of its coEf"),
        "truncated": (good[: place + 500], "truncated: its chunk coEf claims"),
        "without an end": (good[:-12], "without the chunk IEND"),
        "huge length": (good[: place - 4] + b"\xff\xff\xff\xff" + good[place:], "claims 4294967295 bytes"),
        "the second is damaged": (with_chunks(good, [(CHUNK, file[:-1])]), "subject 2 of 2 in .*damaged"),
        "twice": (with_chunks(good, [(CHUNK, file)]), r"carries 'dog' \(.*\) twice"),
        "too many": (with_chunks(PNG, [(CHUNK, b"")] * (MAX_SUBJECTS + 1)), f"more than {MAX_SUBJECTS} coEf chunks"),
        "thousands": (with_chunks(PNG, [(CHUNK, file)] * 5_000), "coEf chunks"),
        "too large": (raw(bytes(MAX_BYTES + 1)), f"have {MAX_BYTES + 1} bytes, expected at most"),
        "a JPEG": (b"\xff\xd8\xff" + file, "which carries no subject in itself|it is a JPEG picture"),
    }  # fmt: skip


def test_bad_cards_are_errors_that_name_the_file(dog: Coefficients, tmp_path: Path) -> None:
    path = tmp_path / "card.png"
    for kind, (data, message) in bad_cards(dog).items():
        path.write_bytes(data)
        for attempt in (lambda: Coefficients.load(path), lambda: extract(path)):
            with pytest.raises(CoefficientsError, match=message) as error:
                attempt()
            assert str(path) in str(error.value), kind
            assert "\n" not in str(error.value), kind
        with pytest.raises(CoefficientsError, match=message):
            extract(data)


def test_links_are_not_followed(card: Path, tmp_path: Path) -> None:
    (tmp_path / "link.png").symlink_to(card)
    with pytest.raises(CoefficientsError, match="symbolic link"):
        Coefficients.load(tmp_path / "link.png")
    with pytest.raises(CoefficientsError, match="there is no file"):
        Coefficients.load(tmp_path / "none.png")


def test_pixels_are_never_decoded(dog: Coefficients, tmp_path: Path) -> None:
    header = b"IHDR" + (2**31 - 1).to_bytes(4, "big") * 2 + PNG[24:29]  # more pixels than any memory holds
    bomb = PNG[:12] + header + zlib.crc32(header).to_bytes(4, "big") + PNG[33:]
    (tmp_path / "card.png").write_bytes(embed(bomb, [dog]))
    assert Coefficients.load(tmp_path / "card.png") == dog


# --- the command ------------------------------------------------------------------------------------------------------


def make(subject: object, picture: object, output: object, **options: Any) -> tuple[Path, list[str]]:
    lines: list[str] = []
    path = make_card_file(CardConfig(str(subject), str(picture), str(output), **options), lines.append)
    return path, lines


@pytest.fixture
def dog_file(dog: Coefficients, tmp_path: Path) -> Path:
    dog.save(tmp_path / "dog.safetensors")
    return tmp_path / "dog.safetensors"


def test_a_png_keeps_all_it_has(dog_file: Path, dog: Coefficients, tmp_path: Path) -> None:
    picture = png(GREY, "a dog\nSteps: 1, Seed: 2, Size: 32x24", dpi=(72, 72), icc_profile=b"colours")
    (tmp_path / "a.png").write_bytes(picture)
    path, lines = make(dog_file, tmp_path / "a.png", tmp_path / "new" / "out.png")
    assert path.read_bytes() == embed(picture, [dog])
    assert (tmp_path / "a.png").read_bytes() == picture
    added = len(path.read_bytes()) - len(picture)
    assert lines == [f"{path} carries 'dog' ({dog.sha256[:12]}): {added:,} bytes more than the picture alone"]
    assert [file.name for file in path.parent.iterdir()] == ["out.png"]  # nothing temporary left behind
    assert read_parameters(path).seed == 2


def test_a_card_is_a_subject_and_a_picture_for_the_next(
    card: Path, cat: Coefficients, dog: Coefficients, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    assert make(card, tmp_path / "a.png", tmp_path / "out.png")[0].read_bytes() == card.read_bytes()
    (tmp_path / "cat").mkdir()
    cat.save(tmp_path / "cat" / "coefficients.safetensors")
    assert extract(make(tmp_path / "cat", card, tmp_path / "both.png")[0]) == [dog, cat]
    with pytest.raises(CoefficientsError, match="is there twice"):
        make(card, card, tmp_path / "twice.png")
    assert not (tmp_path / "twice.png").exists()


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.jpg", "RGB"), ("a.jpg", "L"), ("a.webp", "RGBA"), ("a.gif", "P"), ("a.bmp", "RGB"), ("a.tif", "I;16"),
     ("a.tif", "1"), ("a.tif", "LA"), ("a.ppm", "RGB")],
)  # fmt: skip
def test_any_picture_becomes_a_png_with_the_same_pixels(
    name: str, mode: str, dog_file: Path, dog: Coefficients, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    image.save(tmp_path / name)
    path, _ = make(dog_file, tmp_path / name, tmp_path / "out.png")
    assert extract(path) == [dog]
    with Image.open(path) as found, Image.open(tmp_path / name) as before:
        assert found.format == "PNG"
        assert found.convert("RGBA").tobytes() == before.convert("RGBA").tobytes()
        assert np.array_equal(np.asarray(found), np.asarray(before))


def test_a_photo_is_turned_upright_and_its_exif_stays_out(dog_file: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010F] = "a camera"
    GREY.convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    path, _ = make(dog_file, tmp_path / "a.jpg", tmp_path / "out.png")
    with Image.open(path) as found, Image.open(tmp_path / "a.jpg") as photo:
        assert found.size == (24, 32)
        assert found.tobytes() == photo.transpose(Image.Transpose.ROTATE_270).tobytes()
        assert not found.getexif()
    assert b"a camera" not in path.read_bytes()


def test_pictures_that_cannot_be_cards(dog_file: Path, tmp_path: Path) -> None:
    def refused(name: str, message: str) -> None:
        with pytest.raises(PictureError, match=message):
            make(dog_file, tmp_path / name, tmp_path / "out.png")
        assert not (tmp_path / "out.png").exists()

    GREY.convert("CMYK").save(tmp_path / "a.tif")
    refused("a.tif", "CMYK pixels, which a PNG cannot hold without loss")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "deep.tif")
    refused("deep.tif", "I pixels, which a PNG cannot hold without loss")
    GREY.save(tmp_path / "a.gif", save_all=True, append_images=[GREY.rotate(90)])
    refused("a.gif", "holds several pictures")
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    refused("a.jpg", "not a readable picture")
    refused("none.jpg", "not a readable picture: it does not exist")
    (tmp_path / "cut.png").write_bytes(PNG[:-5])
    with pytest.raises(PictureError, match="truncated"):
        make(dog_file, tmp_path / "cut.png", tmp_path / "out.png")


def test_nothing_is_overwritten_unless_asked_for(dog_file: Path, dog: Coefficients, card: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with pytest.raises(OutputError, match=r"card.png exists; .* --overwrite"):
        make(dog_file, tmp_path / "a.png", card)
    assert extract(make(dog_file, tmp_path / "a.png", tmp_path / "a.png", overwrite=True)[0]) == [dog]
    with pytest.raises(OutputError, match=r"out.jpg does not end in \.png; give a name that does"):
        make(dog_file, card, tmp_path / "out.jpg")


def test_a_picture_of_another_subject_is_no_card_of_this_one(
    dog_file: Path, dog: Coefficients, cat: Coefficients, tmp_path: Path
) -> None:
    drawn = Parameters("a cat", steps=1, seed=1, subjects={"cat": 1.0}, hashes={"cat": cat.sha256[:12]})
    (tmp_path / "a.png").write_bytes(png(text=format_parameters(drawn)))
    with pytest.raises(
        PictureError, match=rf"drawn with 'cat' \({cat.sha256[:12]}\), but the subject is 'dog' \({dog.sha256[:12]}\)"
    ):
        make(dog_file, tmp_path / "a.png", tmp_path / "out.png")
    both = replace(drawn, hashes={**drawn.hashes, "dog": dog.sha256[:12]})
    (tmp_path / "a.png").write_bytes(png(text=format_parameters(both)))
    assert extract(make(dog_file, tmp_path / "a.png", tmp_path / "out.png")[0]) == [dog]


def test_a_photo_of_a_phone_becomes_a_png(tmp_path: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (230, 40, 30))).save(tmp_path / "a.heic", quality=95)
    with Image.open(io.BytesIO(as_png(tmp_path / "a.heic"))) as image:
        assert (image.format, image.size) == ("PNG", (64, 48))
        assert image.convert("RGB").getpixel((9, 9)) == pytest.approx((230, 40, 30), abs=4)
