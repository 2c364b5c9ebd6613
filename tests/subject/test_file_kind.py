"""The kind of a file is what its bytes say; wherever a subject can be given, that is what people are told."""

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from subject_maker import of_stable_diffusion

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.commands.info import collect_facts
from coeff_diffusion.images.png import with_chunks
from coeff_diffusion.inference.request import split_strength
from coeff_diffusion.sources.image_card import CHUNK, embed, extract
from coeff_diffusion.sources.qr_code import make_qr
from coeff_diffusion.subject.errors import UserError
from coeff_diffusion.subject.file_kind import SAFETENSORS, kind_of

SUBJECT = of_stable_diffusion(name="dog", trigger="sks dog")
PIXELS = Image.radial_gradient("L").resize((40, 40)).convert("RGB")


def picture(kind: str, image: Image.Image = PIXELS) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def checkpoint(legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"a": torch.zeros(2)}}, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def archive(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name in names:
            zipped.writestr(name, SUBJECT.to_bytes())
    return file.getvalue()


PICKLED = "a pickle, which can run any code"
NO_SUBJECTS = {
    "PNG": (picture("PNG"), "carries (no subject in a coEf chunk|neither drawing parameters nor a subject)"),
    "JPEG": (picture("JPEG"), "is a JPEG picture.*carries n"),
    "WebP": (picture("WEBP"), "is a WebP picture"),
    "GIF": (picture("GIF"), "is a GIF picture"),
    "BMP": (picture("BMP"), "is a BMP picture"),
    "TIFF": (picture("TIFF"), "is a TIFF picture"),
    "HEIC": (bytes([0, 0, 0, 24]) + b"ftypheic" + bytes(40), "is a HEIC picture"),
    "video": (bytes([0, 0, 0, 24]) + b"ftypisom" + bytes(40), "it is a video"),
    "zip": (archive("dog.safetensors"), "it is a zip archive.*unpack it"),
    "empty zip": (archive(), "it is a zip archive"),
    "checkpoint of PyTorch": (checkpoint(), f"it is a checkpoint of PyTorch that holds {PICKLED}"),
    "old checkpoint of PyTorch": (checkpoint(legacy=True), f"it is {PICKLED}"),
    "pickle": (pickle.dumps([1]), f"it is {PICKLED}"),
    "web page": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "it is a web page.*download the file itself"),
    "web page with a remark": (b"\xef\xbb\xbf<!-- saved from -->\n<HTML>", "it is a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "pointer of Git LFS.*git lfs"),
    "nothing": (b"", "it is an empty file"),
    "zeros": (bytes(10_000), "it is zeros where it begins"),
    "text": ("Ein Text über Hunde 🐶\n".encode() * 999, "it is a text"),
    "JSON": (b'{"error": "not found", "status": 404}', "it is a text"),
    "noise": (bytes(range(128, 200)), "it is of no known kind .its first bytes are 80 81 82 83 84 85 86 87"),
    "LoRA": (save({"lora_unet_mid_block.lora_down.weight": torch.zeros(1)}), "it is a LoRA"),
    "base": (save({"model.diffusion_model.out.2.bias": torch.zeros(1)}), "it is a whole checkpoint, which is a base"),
}
NAMES = ("x.safetensors", "x.png", "x.jpg", "x", "x.ckpt", "x.y")


@pytest.mark.parametrize("kind", NO_SUBJECTS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("opened", [Coefficients.load, collect_facts])
def test_what_is_no_subject_is_called_by_its_kind(
    opened: Callable[[Path], object], name: str, kind: str, tmp_path: Path
) -> None:
    data, message = NO_SUBJECTS[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        opened(tmp_path / name)
    assert "header claims" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


FILES = {
    "file": SUBJECT.to_bytes(),
    "narrow file": SUBJECT.to_bytes(torch.float16),
    "card": embed(picture("PNG"), [SUBJECT]),
    **{f"{kind} of a code": picture(kind, make_qr(SUBJECT).convert("L")) for kind in ("PNG", "JPEG", "GIF", "TIFF")},
    **{f"{kind} of a code in colours": picture(kind, make_qr(SUBJECT).convert("RGB")) for kind in ("WEBP", "BMP")},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", FILES)
def test_a_subject_is_read_under_any_name(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[kind])
    found = Coefficients.load(tmp_path / name)
    assert found.info.trigger == "sks dog"
    assert len(found) == len(SUBJECT)
    assert collect_facts(tmp_path / name)["kind"] == ("subject" if "file" in kind else "picture")


@pytest.mark.parametrize("length", [0x4D42, 0xD8FF, 0x8950, 0x0280, 0x0AFF, 0x2A4949, 0x8B1F])
def test_the_length_of_a_header_may_look_like_another_kind(length: int) -> None:
    assert kind_of(length.to_bytes(8, "little") + b'{"__metadata__":{}}') is SAFETENSORS


TAILS = {"zeros": bytes(16), "text": b"\nsent by a chat program", "a chunk": b"\0\0\0\0IEND", "a zip": archive("a")}


@pytest.mark.parametrize("tail", TAILS)
def test_bytes_behind_the_end_of_a_card_are_no_part_of_it(tail: str, tmp_path: Path) -> None:
    path, whole = tmp_path / "card.png", embed(picture("PNG"), [SUBJECT])
    path.write_bytes(whole + TAILS[tail])
    assert extract(path) == [SUBJECT]
    assert Coefficients.load(path) == SUBJECT
    assert collect_facts(path)["subjects"][0]["sha256"] == SUBJECT.sha256
    again = embed(picture("PNG") + TAILS[tail], [SUBJECT])
    assert extract(again) == [SUBJECT]
    assert again == whole + TAILS[tail]  # nothing is thrown away
    behind = picture("PNG") + with_chunks(picture("PNG"), [(CHUNK, SUBJECT.to_bytes())])
    assert extract(behind) == []  # what stands behind the end was not put there by us


@pytest.mark.parametrize(
    "name",
    ["run_12:30:45", "cat-v1:2.safetensors", "dog [final].safetensors", "[x]", "*.safetensors", "~dog", "dog:1",
     "a\nb", "🐶.safetensors", "caf\udce9.safetensors", "x" * 250, " ", "-", "dog:0.5.png"],
)  # fmt: skip
def test_any_name_that_a_file_can_have(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(SUBJECT.to_bytes())
    for given in (name, str(tmp_path / name)):
        assert Coefficients.load(given) == SUBJECT
        assert split_strength(given) == (given, 1.0)
        assert split_strength(f"{given}:0.5") == (given, 0.5)
    shutil.move(name, "elsewhere")
    Path(name).mkdir()
    Path(name, "coefficients.safetensors").write_bytes(SUBJECT.to_bytes())
    assert Coefficients.load(name) == SUBJECT
    assert split_strength(name) == (name, 1.0)


def test_a_name_that_could_mean_two_things(tmp_path: Path) -> None:
    for name in ("dog", "dog:2"):
        SUBJECT.save(tmp_path / name)
    with pytest.raises(UserError, match=r"dog:2.* and .*dog.* are both there; write .*dog:2:1 or .*dog:2\.0"):
        split_strength(str(tmp_path / "dog:2"))
    assert split_strength(str(tmp_path / "dog:2:1")) == (str(tmp_path / "dog:2"), 1.0)
    assert split_strength(str(tmp_path / "dog:2.0")) == (str(tmp_path / "dog"), 2.0)


def test_a_folder_without_a_subject_names_what_may_be_one(tmp_path: Path) -> None:
    SUBJECT.save(tmp_path / "my dog.safetensors")
    (tmp_path / "notes.md").touch()
    with pytest.raises(CoefficientsError, match=r"no coefficients.safetensors; it holds 'my dog.safetensors': give"):
        Coefficients.load(tmp_path)
