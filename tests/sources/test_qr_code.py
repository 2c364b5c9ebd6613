"""QR cards: written as a picture, read back from what chats and screenshots make of it, and from strangers."""

import io
import math
import os
import runpy
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import segno
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, load_base, load_coefficients
from coeff_diffusion.cli import main
from coeff_diffusion.commands.config import QrConfig
from coeff_diffusion.commands.output import OutputError
from coeff_diffusion.commands.qr import make_qr_file
from coeff_diffusion.families.fingerprint import describe_base
from coeff_diffusion.families.layout import Layout, _known
from coeff_diffusion.images.generation_info import PictureError
from coeff_diffusion.images.photo import DatasetError
from coeff_diffusion.inference.pipeline_subjects import unload_coefficients
from coeff_diffusion.sources.qr_code import GAP, MAX_FILE, MODULE, QUIET_ZONE, make_qr, make_sheet, read_qr
from coeff_diffusion.sources.qr_payload import CAPACITY, largest_change, pack, unpack


def topology(name: str = "Stable Diffusion 1.x") -> Layout:
    found = _known(name)
    assert found is not None
    return found


def new_subject(seed: int = 0, **info: str) -> Coefficients:
    """A whole subject for Stable Diffusion 1.x that no compressor makes smaller."""
    generator = torch.Generator().manual_seed(seed)
    base = topology()
    known = {"name": "my dog", "trigger": "sks dog", "class_word": "dog", "base_fingerprint": base.fingerprint}
    return Coefficients(
        {path: torch.rand(heads, heads, generator=generator) / 5 - 0.1 for path, heads in base.heads.items()},
        {"text_encoder": torch.rand(1, base.widths["text_encoder"], generator=generator) / 20 - 0.025},
        CoefficientsInfo(**{**known, **info}),  # type: ignore[arg-type]
    )


SUBJECT = new_subject()
KEPT = unpack(pack(SUBJECT))
CODE = make_qr(SUBJECT)


def picture(width: int = 96, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def foreign(content: str | bytes) -> Image.Image:
    code = segno.make_qr(content, mode="byte" if isinstance(content, bytes) else None)
    return Image.fromarray(~np.array([list(row) for row in code.matrix_iter(scale=4, border=4)], dtype=bool))


# --- pictures of codes ------------------------------------------------------------------------------------------------


def test_a_whole_subject_of_stable_diffusion_1_goes_through_a_picture(tmp_path: Path) -> None:
    image = CODE
    assert image.size == ((177 + 2 * QUIET_ZONE) * MODULE,) * 2  # version 40, the largest
    image.save(tmp_path / "dog.png")
    read = read_qr(tmp_path / "dog.png")
    assert read == KEPT
    assert (tmp_path / "dog.png").stat().st_size < 10_000
    for name, tensor in SUBJECT.named_tensors().items():
        change = (tensor.double() - read.named_tensors()[name].double()).abs().max()
        assert change * 254 <= tensor.abs().max()


@pytest.mark.parametrize("scale", [0.5, 0.75, 1, 1.25, 1.5, 2])
def test_jpegs_and_screenshots_are_read(tmp_path: Path, scale: float) -> None:
    image = make_sheet(picture(), "sks dog", CODE)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    image.save(tmp_path / "shot.png")
    image.save(tmp_path / "shot.jpg", quality=90)
    image.save(tmp_path / "shot.webp", quality=80)
    for name in ("shot.png", "shot.jpg", "shot.webp"):
        assert read_qr(tmp_path / name) == KEPT, name


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_of_picture_is_read(tmp_path: Path, mode: str) -> None:
    CODE.convert("L").convert(mode).save(tmp_path / "dog.png")
    assert read_qr(tmp_path / "dog.png") == KEPT


def test_a_turned_code_on_a_desk(tmp_path: Path) -> None:
    desk = Image.new("RGB", (1_400, 1_100), (180, 140, 90))
    desk.paste(CODE.convert("RGB"), (300, 200))
    desk.rotate(7, resample=Image.Resampling.BICUBIC).save(tmp_path / "desk.jpg", quality=90)
    assert read_qr(tmp_path / "desk.jpg") == KEPT


def test_nothing_on_a_sheet_is_resampled() -> None:
    shown, code = picture(), CODE
    for trigger in ("sks dog", "", "a very long trigger " * 10):
        sheet = make_sheet(shown, trigger, code)
        left = (sheet.width - shown.width) // 2
        top = sheet.height - GAP - code.height
        assert sheet.crop((left, GAP, left + shown.width, GAP + shown.height)).tobytes() == shown.tobytes()
        left = (sheet.width - code.width) // 2
        assert sheet.crop((left, top, left + code.width, top + code.height)).tobytes() == code.convert("RGB").tobytes()
        words = np.asarray(sheet.crop((0, GAP + shown.height, sheet.width, top)).convert("L")) < 128
        assert words.any() == bool(trigger)
        assert not words[:, [0, -1]].any()  # it ends before the edge


def test_a_subject_for_the_embedded_base_loads_into_it(tmp_path: Path) -> None:
    pipe = load_base("embedded")
    base = topology("the embedded base")
    info = CoefficientsInfo(name="dog", trigger="sks dog", base_model="embedded", **describe_base(pipe.unet))
    subject = Coefficients(
        {path: 0.05 * torch.randn(heads, heads) for path, heads in base.heads.items()},
        {"text_encoder": 0.03 * torch.randn(1, base.widths["text_encoder"])},
        info,
    )
    assert len(pack(subject)) < CAPACITY
    make_qr(subject).save(tmp_path / "dog.png")
    read = read_qr(tmp_path / "dog.png")
    assert read is not None
    with warnings.catch_warnings(action="error"):  # the sample says that it is the base itself
        load_coefficients(pipe, read)
    unload_coefficients(pipe)
    assert largest_change(subject, read)[1] <= 1 / 254


# --- from strangers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["https://example.org", b"\x00\xff\x80 any bytes", "coef", b"coEg\x01" + bytes(20)])
def test_other_peoples_codes_are_nothing(tmp_path: Path, content: str | bytes) -> None:
    foreign(content).save(tmp_path / "code.png")
    assert read_qr(tmp_path / "code.png") is None


def test_a_picture_without_a_code_is_nothing(tmp_path: Path) -> None:
    picture().save(tmp_path / "picture.png")
    assert read_qr(tmp_path / "picture.png") is None


def test_ours_is_found_beside_others(tmp_path: Path) -> None:
    ours, other = CODE, foreign("https://example.org")
    both = Image.new("1", (ours.width + other.width, ours.height), 1)
    both.paste(other, (0, 0))
    both.paste(ours, (other.width, 0))
    both.save(tmp_path / "both.png")
    assert read_qr(tmp_path / "both.png") == KEPT


def test_two_subjects_are_one_too_many(tmp_path: Path) -> None:
    ours, other = CODE, make_qr(new_subject(1))
    both = Image.new("1", (2 * ours.width, ours.height), 1)
    both.paste(ours, (0, 0))
    both.paste(other, (ours.width, 0))
    both.save(tmp_path / "both.png")
    with pytest.raises(CoefficientsError, match="QR codes of 2 subjects"):
        read_qr(tmp_path / "both.png")
    both.paste(ours, (ours.width, 0))
    both.save(tmp_path / "both.png")
    assert read_qr(tmp_path / "both.png") == KEPT


@pytest.mark.parametrize("payload", [b"coEf", pack(SUBJECT)[:-1], b"coEf\x01" + bytes(100)])
def test_damaged_ones_of_ours_are_errors(tmp_path: Path, payload: bytes) -> None:
    foreign(payload).save(tmp_path / "code.png")
    with pytest.raises(CoefficientsError, match=r"the QR code in .*code.png: damaged"):
        read_qr(tmp_path / "code.png")


def claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be this large."""
    data = io.BytesIO()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    data.write(b"\x89PNG\r\n\x1a\n")
    for kind, content in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b"")):
        PngImagePlugin.putchunk(data, kind, content)
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (claiming(4_097, 10), "4097 x 10 pixels; QR codes are looked for in"),
        (claiming(4_096, 4_096), "4096 x 4096 pixels; QR codes are looked for in"),
        (claiming(12_000, 12_000), "12000 x 12000 pixels"),
        (claiming(60_000, 60_000), "cannot be read|60000"),
        (b"", "picture.png is an empty file; expected a picture"),
        (b"not a picture", "picture.png is a text; expected a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "picture.png is a text; expected a picture"),
    ],
)
def test_pictures_that_are_none_or_too_large(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(CoefficientsError, match=message):
        read_qr(path)


def test_files_that_are_none_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(CoefficientsError, match="there is no file"):
        read_qr(tmp_path / "missing.png")
    with pytest.raises(CoefficientsError, match="not a regular file"):
        read_qr(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(CoefficientsError, match="not a regular file"):
        read_qr(tmp_path / "pipe.png")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(CoefficientsError, match="is zeros where it begins"):
        read_qr(tmp_path / "large.png")


def encoded(kind: str) -> bytes:
    data = io.BytesIO()
    CODE.convert("RGB" if kind == "WEBP" else "L").save(data, kind, quality=90)
    return data.getvalue()


FILES = [encoded(kind) for kind in ("PNG", "JPEG", "WEBP")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 2**20), st.binary(max_size=4)), min_size=1, max_size=6)
)
def test_damaged_pictures(tmp_path: Path, data: bytes, mutations: list[tuple[int, bytes]]) -> None:
    for place, new in mutations:
        at = (place // 2 if place % 2 else place % 100) % len(data)
        data = data[:at] + new + data[at + max(1, len(new)) :]
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    try:
        read = read_qr(path)
    except CoefficientsError:
        return
    assert read is None or read == KEPT  # the code's own error correction mends what the picture lost


# --- the benchmark ----------------------------------------------------------------------------------------------------


def test_the_benchmark_measures_pixels() -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "qr.py"))
    shown = [picture(), picture(80, 80).resize((96, 64))]
    brighter = [Image.fromarray(np.minimum(np.asarray(one), 250) + 5) for one in shown]
    duller = [Image.fromarray(np.minimum(np.asarray(one), 250)) for one in shown]
    assert benchmark["differences"](shown, shown) == (0, 0, math.inf)
    mean, largest, psnr = benchmark["differences"](duller, brighter)
    assert (mean, largest) == (5, 5)
    assert psnr == pytest.approx(20 * math.log10(255 / 5))


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_and_tells(tmp_path: Path) -> None:
    new_subject(name="an old and very friendly dog").save(tmp_path / "dog.safetensors")
    lines: list[str] = []
    path = make_qr_file(QrConfig(str(tmp_path / "dog.safetensors"), str(tmp_path / "new" / "dog.png")), lines.append)
    read = read_qr(path)
    assert read is not None
    assert read.info.extra["quantized"]["bits"] == 8
    assert [path.name for path in path.parent.iterdir()] == ["dog.png"]
    assert lines[0] == f"{path}: {len(pack(Coefficients.load(tmp_path / 'dog.safetensors'))):,} of the 2,953 bytes " + (
        "that a QR code holds"
    )
    assert lines[1].startswith("rounded to 8 bits: no value changes by more than 0.0003")
    assert "0.39% of the largest in its layer" in lines[1]


def test_the_command_tells_what_is_cut(tmp_path: Path) -> None:
    new_subject(name="an old and very friendly dog", class_word="long-haired dachshund").save(
        tmp_path / "dog.safetensors"
    )
    lines: list[str] = []
    make_qr_file(QrConfig(str(tmp_path / "dog.safetensors"), str(tmp_path / "dog.png")), lines.append)
    read = read_qr(tmp_path / "dog.png")
    assert read is not None
    assert lines[2:] == [
        f"no room for the whole name 'an old and very friendly dog': it is {read.info.name!r} in the code"
    ]


def test_the_command_makes_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SUBJECT.save(tmp_path / "dog.safetensors")
    picture(200, 300).save(tmp_path / "picture.jpg")
    out = tmp_path / "sheet.png"
    assert (
        main(["qr", str(tmp_path / "dog.safetensors"), "-o", str(out), "--picture", str(tmp_path / "picture.jpg")]) == 0
    )
    assert read_qr(out) == KEPT
    with Image.open(out) as sheet:
        assert sheet.height > CODE.height + 300
    assert str(out) in capsys.readouterr().out
    assert main(["qr", str(tmp_path / "dog.safetensors"), "-o", str(out)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["qr", str(tmp_path / "dog.safetensors"), "-o", str(out), "--overwrite"]) == 0
    with Image.open(out) as code:
        assert code.size == CODE.size


def test_what_the_command_refuses_leaves_nothing(tmp_path: Path) -> None:
    SUBJECT.save(tmp_path / "dog.safetensors")
    new_subject(base_fingerprint="ab" * 32).save(tmp_path / "other.safetensors")
    Image.new("1", (4_090, 2_900)).save(tmp_path / "large.png")
    (tmp_path / "text.png").write_text("no picture")
    before = sorted(tmp_path.iterdir())
    dog, out = str(tmp_path / "dog.safetensors"), str(tmp_path / "out.png")
    for config, error, message in [
        (QrConfig(dog, str(tmp_path / "out.jpg")), OutputError, "does not end in .png"),
        (QrConfig(dog, str(tmp_path / "large.png")), OutputError, "exists"),
        (QrConfig(dog, out, picture=str(tmp_path / "large.png")), PictureError, r"a sheet of \d+ x \d+"),
        (QrConfig(dog, out, picture=str(tmp_path / "text.png")), DatasetError, "not a readable picture"),
        (QrConfig(str(tmp_path / "other.safetensors"), out), CoefficientsError, "coeff-diffusion card"),
        (QrConfig(str(tmp_path / "missing.safetensors"), out), CoefficientsError, "there is no file"),
    ]:
        with pytest.raises(error, match=message):
            make_qr_file(config, lambda line: None)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["segno", "zxingcpp"])
def test_without_the_libraries_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    CODE.save(tmp_path / "dog.png")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(CoefficientsError, match=r"pip install 'coeff-diffusion\[qr\]'"):
        make_qr(SUBJECT) if name == "segno" else read_qr(tmp_path / "dog.png")
