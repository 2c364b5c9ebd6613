"""A file out of one or several others: narrower numbers, blends, and nothing overwritten by accident."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo, blend, check_fits
from coeff_diffusion.commands.config import BlendConfig, ConvertConfig
from coeff_diffusion.commands.convert import blend_files, convert
from coeff_diffusion.commands.output import OutputError
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.sources.image_card import CHUNK, embed
from coeff_diffusion.subject.coefficients import MAX_MAGNITUDE
from coeff_diffusion.subject.pruning import average_change, keep_strongest
from coeff_diffusion.subject.safetensors_file import DTYPES, serialize

Subject = Callable[..., Coefficients]


@pytest.fixture
def dog(new_subject: Subject, tmp_path: Path) -> Path:
    path = tmp_path / "dog.safetensors"
    new_subject("my dog", vectors=1).save(path)
    return path


def run(command: Any, config: Any) -> str:
    """What a command says."""
    said: list[str] = []
    command(config, said.append)
    (line,) = said
    return line


def header(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


# --- convert ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_narrower_numbers_are_rounded_and_the_hash_is_of_what_is_read(
    name: Any, code: str, dog: Path, tmp_path: Path
) -> None:
    before, out = Coefficients.load(dog), tmp_path / "half.safetensors"
    line = run(convert, ConvertConfig(str(dog), str(out), name))
    after, dtype = Coefficients.load(out), DTYPES[code]  # a wrong hash would be an error here
    tensors = before.named_tensors()
    assert all(torch.equal(tensor, tensors[key].to(dtype).float()) for key, tensor in after.named_tensors().items())
    assert after.info == before.info
    metadata = header(out).pop("__metadata__")
    assert metadata["modelspec.hash_sha256"] == f"0x{after.sha256}"
    assert {entry["dtype"] for key, entry in header(out).items() if key != "__metadata__"} == {code}
    values = sum(tensor.numel() for tensor in tensors.values())
    assert dog.stat().st_size - out.stat().st_size == pytest.approx(2 * values, abs=100)
    changes = {key: (tensor - after.named_tensors()[key]).abs().flatten() for key, tensor in tensors.items()}
    word = changes.pop("text_encoder/token").double()
    layers = torch.cat(list(changes.values())).double()
    both = [torch.cat([t.flatten() for t in s.named_tensors().values()]).double() for s in (before, after)]
    share = float((both[1] - both[0]).norm() / both[0].norm())
    assert line == (
        f"{out}: {out.stat().st_size:,} bytes, {name}; no coefficient changed by more than {layers.max():.2g} "
        f"({layers.mean():.2g} on average), no number of its learned word by more than {word.max():.2g} "
        f"({word.mean():.2g} on average); all together by {share:.2%}"
    )
    assert share < {"F16": 0.0005, "BF16": 0.004}[code]

    wide = tmp_path / "wide.safetensors"
    assert "no number changed" in run(convert, ConvertConfig(str(out), str(wide), "float32"))
    assert Coefficients.load(wide) == after


def test_eight_bits_are_a_quarter_and_stay_exact_in_half_precision(dog: Path, tmp_path: Path) -> None:
    out, half, picture = tmp_path / "steps.safetensors", tmp_path / "half.safetensors", tmp_path / "card.png"
    line = run(convert, ConvertConfig(str(dog), str(out), "int8"))
    before, after = Coefficients.load(dog), Coefficients.load(out)
    values = sum(tensor.numel() for tensor in before.named_tensors().values())
    assert dog.stat().st_size - out.stat().st_size == pytest.approx(3 * values, abs=500)
    assert re.search(r"bytes, int8; no coefficient changed by more than .*; all together by 0\.\d\d%$", line)
    assert after != before
    assert "float16; no number changed" in run(convert, ConvertConfig(str(out), str(half)))
    assert Coefficients.load(half) == after
    plain = save_picture(Image.new("RGB", (8, 8)), picture).read_bytes()
    picture.write_bytes(embed(plain, [after]))
    assert Coefficients.load(picture) == after


def test_float32_is_the_same_file(dog: Path, tmp_path: Path) -> None:
    out = tmp_path / "same.safetensors"
    assert run(convert, ConvertConfig(str(dog), str(out), "float32")).endswith("float32; no number changed")
    assert out.read_bytes() == dog.read_bytes()


def test_a_file_of_the_first_versions_is_written_anew(dog: Path, tmp_path: Path) -> None:
    subject, old = Coefficients.load(dog), tmp_path / "old.safetensors"
    named = {name.replace("/", "."): tensor for name, tensor in subject.named_tensors().items()}
    old.write_bytes(serialize(named, header(dog)["__metadata__"]))
    with pytest.raises(CoefficientsError, match=r"old\.safetensors: .*first versions .*coeff-diffusion convert"):
        Coefficients.load(old)
    run(convert, ConvertConfig(str(old), str(tmp_path / "new.safetensors"), "float32"))
    assert (tmp_path / "new.safetensors").read_bytes() == dog.read_bytes()
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "card.png", chunks=[(CHUNK, old.read_bytes())])
    run(convert, ConvertConfig(str(tmp_path / "card.png"), str(tmp_path / "of a card.safetensors"), "float32"))
    assert (tmp_path / "of a card.safetensors").read_bytes() == dog.read_bytes()


def test_numbers_too_small_for_float16_are_counted_in_the_error(tmp_path: Path) -> None:
    Coefficients({"mid_block.attn1": torch.full((2, 2), 1e-9)}).save(tmp_path / "small.safetensors")
    line = run(convert, ConvertConfig(str(tmp_path / "small.safetensors"), str(tmp_path / "o.safetensors"), "float16"))
    assert line.endswith("no coefficient changed by more than 1e-09 (1e-09 on average); all together by 100.00%")


def test_no_number_of_a_subject_is_too_large_for_a_type() -> None:
    """What a subject may hold ends long before float16 does, so rounding cannot make infinities."""
    largest = Coefficients({"mid_block.attn1": torch.full((2, 2), MAX_MAGNITUDE)})
    for dtype in DTYPES.values():
        assert torch.finfo(dtype).max > MAX_MAGNITUDE
    for dtype in (*DTYPES.values(), torch.int8):
        Coefficients.from_bytes(largest.to_bytes(dtype))
    with pytest.raises(CoefficientsError, match=r"files hold torch\.float32, .*, torch\.int8, not torch\.float64"):
        largest.to_bytes(torch.float64)


def test_a_card_is_converted_too(dog: Path, tmp_path: Path) -> None:
    plain = save_picture(Image.new("RGB", (8, 8)), tmp_path / "plain.png").read_bytes()
    (tmp_path / "card.png").write_bytes(embed(plain, [Coefficients.load(dog)]))
    out = tmp_path / "out.safetensors"
    convert(ConvertConfig(str(tmp_path / "card.png"), str(out), "float32"))
    assert Coefficients.load(out) == Coefficients.load(dog)


def test_the_strongest_layers_are_kept_and_fit_the_base(new_subject: Subject, tiny_pipe: Any, tmp_path: Path) -> None:
    """One is made the weakest, one the strongest for its heads; `info.blocks` names what is left, so that it loads."""
    whole = new_subject("my dog", vectors=1)
    paths = list(whole)
    coeffs = {path: torch.full_like(coeff, 0.02 + 0.01 * number) for number, (path, coeff) in enumerate(whole.items())}
    whole = whole.replace(coeffs=coeffs).rounded()
    whole.save(file := tmp_path / "whole.safetensors")
    out = tmp_path / "half.safetensors"
    line = run(convert, ConvertConfig(str(file), str(out), keep="50%"))
    kept, values = Coefficients.load(out), sum(coeff.numel() for coeff in whole.values())
    assert f"{len(kept)} of {len(paths)} layers, float16; no number changed" in line
    assert values / 4 < sum(coeff.numel() for coeff in kept.values()) <= values / 2
    left_out = [average_change(whole[path]) for path in paths if path not in kept]
    assert min(map(average_change, kept.values())) > max(left_out)
    assert all(torch.equal(kept[path], whole[path]) for path in kept)
    assert kept.info.blocks == tuple(kept)
    assert torch.equal(kept.tokens["text_encoder"], whole.tokens["text_encoder"])
    assert out.stat().st_size < file.stat().st_size
    check_fits(kept, tiny_pipe.unet)
    run(convert, ConvertConfig(str(file), str(out), overwrite=True, keep="1"))
    assert Coefficients.load(out) == whole
    run(convert, ConvertConfig(str(file), str(out), overwrite=True, keep="0%"))
    assert not Coefficients.load(out)
    assert Coefficients.load(out).tokens
    with pytest.raises(CoefficientsError, match="it has no learned word; keep more"):
        keep_strongest(Coefficients(coeffs), 0.0)


@pytest.mark.parametrize(
    ("keep", "message"),
    [("half", "--keep is 'half', expected a share, as 50% or 0.5"), ("50", "is 5000%, expected 0 to 100%"),
     ("-1%", "is -1%, expected"), ("nan", "is nan%, expected")],
)  # fmt: skip
def test_what_is_no_share_is_an_error(keep: str, message: str, dog: Path, tmp_path: Path) -> None:
    with pytest.raises(CoefficientsError, match=message):
        convert(ConvertConfig(str(dog), str(tmp_path / "out.safetensors"), keep=keep))
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("command", ["convert", "blend"])
def test_nothing_is_overwritten_unless_asked_for(command: str, dog: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"

    def write(output: Path, overwrite: bool = False) -> None:
        if command == "convert":
            convert(ConvertConfig(str(dog), str(output), "float16", overwrite), lambda _: None)
        else:
            blend_files(BlendConfig([f"{dog}:0.5"], str(output), overwrite=overwrite), lambda _: None)

    out.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists; give another name, or --overwrite"):
        write(out)
    assert out.read_bytes() == b"mine"
    write(out, overwrite=True)
    assert Coefficients.load(out).info.name.endswith("my dog")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "nowhere.safetensors")
    for path, message in {
        tmp_path / "link.safetensors": "exists",
        tmp_path / "out.png": "does not end in .safetensors; give a name that does",
        tmp_path / "none" / "out.safetensors": "there is no folder .*none to write out.safetensors to",
    }.items():
        with pytest.raises(OutputError, match=message):
            write(path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path / "folder.safetensors", overwrite=True)
    assert not (tmp_path / "nowhere.safetensors").exists()
    write(dog, overwrite=True)  # in place
    Coefficients.load(dog)


# --- blend ------------------------------------------------------------------------------------------------------------


def test_a_blend_is_what_blend_gives(new_subject: Subject, dog: Path, tmp_path: Path) -> None:
    cat = new_subject("cat", "zwx cat", seed=2)
    cat.save(tmp_path / "cat.safetensors")
    out = tmp_path / "mix.safetensors"
    parts = [f"{dog}:0.7", f"{tmp_path / 'cat.safetensors'}:-0.3"]
    line = run(blend_files, BlendConfig(parts, str(out)))
    expected = blend([(Coefficients.load(dog), 0.7), (cat, -0.3)])
    assert Coefficients.load(out) == expected
    assert line == (
        f"{out}: '0.7 my dog + -0.3 cat', {out.stat().st_size:,} bytes; acts on prompts with 'sks dog'"
    )  # the dog's: it alone has a learned token
    run(blend_files, BlendConfig(parts, str(out), name="mixture", overwrite=True))
    assert Coefficients.load(out) == expected.replace(info=replace(expected.info, name="mixture"))


def test_a_weight_left_out_is_one(dog: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    run(blend_files, BlendConfig([str(dog)], str(out)))
    assert Coefficients.load(out).named_tensors().keys() == Coefficients.load(dog).named_tensors().keys()
    assert all(torch.equal(Coefficients.load(out)[path], coeff) for path, coeff in Coefficients.load(dog).items())


def test_what_happens_to_triggers_is_said(new_subject: Subject, tmp_path: Path) -> None:
    def files(*subjects: Coefficients) -> list[str]:
        names = [tmp_path / f"{number}.safetensors" for number in range(len(subjects))]
        for name, subject in zip(names, subjects, strict=True):
            subject.save(name)
        return [str(name) for name in names]

    def said(*subjects: Coefficients) -> str:
        return run(blend_files, BlendConfig(files(*subjects), str(tmp_path / "o.safetensors"), overwrite=True))

    dog, cat = new_subject("dog"), new_subject("cat", "zwx cat", seed=2)
    assert said(dog, dog).endswith("acts on prompts with 'sks dog'")
    assert said(dog, cat).endswith("acts on every prompt, for its parts have different triggers ('sks dog', 'zwx cat')")
    assert said(new_subject(trigger="")).endswith("acts on every prompt")
    assert said(new_subject(gate="always")).endswith("acts on every prompt")
    with pytest.raises(CoefficientsError, match="one trigger and one shape.*'sks dog'.*'zwx cat'.*side by side"):
        said(new_subject(vectors=1), new_subject("cat", "zwx cat", vectors=1))


def test_what_cannot_be_blended_leaves_no_file(new_subject: Subject, dog: Path, tmp_path: Path) -> None:
    out = tmp_path / "mix.safetensors"
    other = Coefficients(dict(new_subject()), info=CoefficientsInfo(name="x", base_fingerprint="0" * 64))
    other.save(tmp_path / "other.safetensors")
    for parts, error, message in [
        ([f"{dog}:nan"], StudioError, "nan, expected a finite number"),
        ([f"{dog}:1e9"], CoefficientsError, "expected finite values of magnitude up to 100"),
        ([str(dog), str(tmp_path / "none.safetensors")], CoefficientsError, "there is no file .*none"),
        ([str(dog), str(tmp_path / "other.safetensors")], CoefficientsError, "only subjects of one base.*fingerprint"),
    ]:
        with pytest.raises(error, match=message):
            blend_files(BlendConfig(parts, str(out)))
    assert not out.exists()
