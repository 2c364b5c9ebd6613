"""Files of format version 1: whole or not at all, and from strangers."""

import errno
import json
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.sources.open import locate, read
from coeff_diffusion.subject.atomic_write import atomic_write
from coeff_diffusion.subject.eight_bits import SCALES, to_steps
from coeff_diffusion.subject.safetensors_file import FILE_NAME, MAX_FILE, serialize

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn1"


def new(seed: int = 0, layers: int = 3, heads: int = 4, width: int = 16, **info: Any) -> Coefficients:
    generator = torch.Generator().manual_seed(seed)
    return Coefficients(
        {f"down_blocks.{i}.attn1": torch.randn(heads, heads, generator=generator) for i in range(layers)},
        {"text_encoder": torch.randn(1, width, generator=generator)},
        CoefficientsInfo(name="dog", trigger="sks dog", **info),
    )


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor bytes of a safetensors file."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any] | bytes, tensors: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def changed(**metadata: str | None) -> bytes:
    """A valid file with other metadata; None takes a key out."""
    header, tensors = parts(new().to_bytes())
    found = {**header["__metadata__"], **metadata}
    header["__metadata__"] = {key: value for key, value in found.items() if value is not None}
    return joined(header, tensors)


def in_eight_bits(
    more: int = 0, format_version: str = "2", scales: torch.Tensor | None = None, hash_of: Coefficients | None = None
) -> bytes:
    """A file of int8 numbers, some of it changed; without a hash, unless it is that of something else."""
    header, _ = parts(new().to_bytes(torch.int8))
    metadata = {**header["__metadata__"], "format_version": format_version}
    del metadata["modelspec.hash_sha256"]
    if hash_of is not None:
        metadata["modelspec.hash_sha256"] = f"0x{hash_of.sha256}"
    tensors = to_steps(new().named_tensors())
    tensors |= {SCALES: scales} if scales is not None else {}
    tensors |= {"unet/mid_block.attn1.coeff": torch.zeros(1, more, dtype=torch.int8)} if more else {}
    return serialize(tensors, metadata)


def with_tensors(**tensors: torch.Tensor) -> bytes:
    """A file of correct form with other tensors, without a hash to give them away."""
    header, _ = parts(new().to_bytes())
    header["__metadata__"].pop("modelspec.hash_sha256")
    named: dict[str, torch.Tensor] = {**new().named_tensors(), **tensors}
    return serialize(named, header["__metadata__"])


# --- round trip -------------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_bitwise_equal(tmp_path: Path) -> None:
    coefficients = new(final_loss=0.1, base_sample=(0.1, 0.2), extra={"novelty": [1]})
    coefficients.save(tmp_path / "dog.safetensors")
    loaded = Coefficients.load(tmp_path / "dog.safetensors")
    assert loaded == coefficients
    assert all(torch.equal(loaded[path], coeff) for path, coeff in coefficients.items())


def test_the_same_coefficients_are_the_same_bytes() -> None:
    assert len({new().to_bytes() for _ in range(10)}) == 1


def test_other_tools_read_it_properly(tmp_path: Path) -> None:
    coefficients = new(base_architecture="stable-diffusion-v1", resolution=512, prediction_type="v_prediction")
    coefficients.save(tmp_path / "dog.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "dog.safetensors")
    assert tensors.keys() == coefficients.named_tensors().keys()
    with safetensors.safe_open(tmp_path / "dog.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "coeff-diffusion"
    assert metadata["format_version"] == "1"
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/coeff"
    assert metadata["modelspec.title"] == "dog"
    assert metadata["modelspec.trigger_phrase"] == "sks dog"
    assert metadata["modelspec.resolution"] == "512x512"
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["modelspec.hash_sha256"] == f"0x{coefficients.sha256}"
    assert "'sks dog'" in metadata["modelspec.usage_hint"]


@pytest.mark.parametrize(("layers", "width", "most"), [(20, 256, 16_384), (32, 768, 24_576)])
def test_files_are_small(layers: int, width: int, most: int) -> None:
    coeffs = {f"down_blocks.{i}.attentions.0.transformer_blocks.0.attn1": torch.randn(8, 8) for i in range(layers)}
    info = CoefficientsInfo(
        name="my dog", trigger="sks dog", instance_prompt="a photo of sks dog", base_fingerprint="0" * 64,
        base_sample=(0.123456,) * 16, created="2026-01-01", license="CC0-1.0", trained_with="coeff-diffusion 0.1.0",
    )  # fmt: skip
    assert len(Coefficients(coeffs, {"text_encoder": torch.randn(1, width)}, info).to_bytes()) < most


def test_narrower_floats_are_widened() -> None:
    named = {name: tensor.half() for name, tensor in new().named_tensors().items()}
    header, _ = parts(new().to_bytes())
    metadata = {key: value for key, value in header["__metadata__"].items() if "hash" not in key}
    loaded = Coefficients.from_bytes(serialize(named, metadata))
    assert loaded["down_blocks.0.attn1"].dtype == torch.float32
    assert torch.equal(loaded["down_blocks.0.attn1"], named["unet/down_blocks.0.attn1.coeff"].float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrower_floats_are_written(dtype: torch.dtype) -> None:
    data = new().to_bytes(dtype)
    loaded, named = Coefficients.from_bytes(data), new().named_tensors()
    assert all(torch.equal(t, named[name].to(dtype).float()) for name, t in loaded.named_tensors().items())
    assert loaded.to_bytes(dtype) == data
    header, _ = parts(data)
    assert header["__metadata__"]["modelspec.hash_sha256"] == f"0x{loaded.sha256}" != f"0x{new().sha256}"


def test_eight_bits_are_written() -> None:
    """No number moves by more than half a step, what is read is exact in half precision, and programs that know format
    version 1 alone refuse the file."""
    before = new(final_loss=0.1)
    data = before.to_bytes(torch.int8)
    header, _ = parts(data)
    metadata, after = header.pop("__metadata__"), Coefficients.from_bytes(data)
    assert metadata["format_version"] == "2"
    assert {name: entry["dtype"] for name, entry in header.items()} == {
        **dict.fromkeys(before.named_tensors(), "I8"),
        SCALES: "F32",
    }
    assert metadata["modelspec.hash_sha256"] == f"0x{after.sha256}"
    assert after.info == before.info
    for name, tensor in after.named_tensors().items():
        original = before.named_tensors()[name]
        assert 0 < (tensor - original).abs().max() <= 1.125 * original.abs().max() / 127 / 2
    assert after.narrowest == torch.float16
    half = after.to_bytes()
    assert parts(half)[0]["__metadata__"]["format_version"] == "1"
    assert Coefficients.from_bytes(half) == after


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-9, 100.0, -100.0])
def test_eight_bits_hold_numbers_of_every_size(value: float) -> None:
    subject = Coefficients({"mid_block.attn1": torch.tensor([[value, 0.0], [0.0, value]])})
    found = Coefficients.from_bytes(subject.to_bytes(torch.int8))["mid_block.attn1"]
    assert abs(found[0, 0] - value) <= 1.125 * abs(value) / 127 / 2 or value == 1e-45
    assert found[0, 1] == 0


def test_what_is_read_is_in_the_order_of_names() -> None:
    """safetensors gives tensors in an order that differs from one process to the next; errors name the first."""
    paths = [f"down_blocks.{i}.attn1" for i in range(3)]
    assert list(Coefficients.from_bytes(new().to_bytes())) == paths
    shuffled = dict(reversed(new().named_tensors().items()))
    assert list(Coefficients.from_named_tensors(shuffled, new().info)) == paths


# --- damage -----------------------------------------------------------------------------------------------------------


def no_permission(*args: Any, **kwargs: Any) -> None:
    raise PermissionError(errno.EACCES, "Permission denied")


def repeated_name() -> bytes:
    header, tensors = parts(new().to_bytes())
    text = json.dumps(header)
    name = '"text_encoder/token"'
    return joined(text.replace(name, f"{name}: {json.dumps(header['text_encoder/token'])}, {name}").encode(), tensors)


def missing_tensor() -> bytes:
    header, _ = parts(new().to_bytes())
    named = new().named_tensors()
    del named["unet/down_blocks.1.attn1.coeff"]
    return serialize(named, header["__metadata__"])


DAMAGED = {
    "empty": (b"", "it is an empty file"),
    "truncated in the header": (new().to_bytes()[:100], "truncated"),
    "truncated in the tensors": (new().to_bytes()[:-1], "damaged"),
    "grown": (new().to_bytes() + b"\0", "damaged"),
    "pickle": (pickle.dumps({"a": torch.zeros(2)}), "a pickle, which can run any code"),
    "oversize header": ((10**15).to_bytes(8, "little") + b"{}", "its header claims 1000000000000000 bytes"),
    "large header": ((2**21 + 8).to_bytes(8, "little") + b"{" * 2**22, "its header claims"),
    "header that is no JSON": (joined(b"{nonsense}", b""), "header is not JSON"),
    "header that is no text": (joined(b"{\xff\xfe", b""), "header is not JSON"),
    "header that nests": (joined(b'{"a":' + b"[" * 500_000, b""), "header is not JSON"),
    "header that is no object": (joined(b"[]", b""), "it is of no known kind"),
    "name given twice": (repeated_name(), "names 'text_encoder/token' twice"),
    "whole model": (b"\0" * (MAX_FILE + 1), "larger than 16 MiB"),
    "no metadata": (
        joined({k: v for k, v in parts(new().to_bytes())[0].items() if k != "__metadata__"}, b""),
        "without",
    ),
    "LoRA": (serialize({"unet.to_q.lora_A.weight": torch.zeros(2)}, {}), "it is a LoRA"),
    "large LoRA": (joined({"lora_A": {}}, b"\0" * MAX_FILE), "larger than 16 MiB.*it is a LoRA"),
    "large pickle": (b"\x80\x02" + b"\1" * MAX_FILE, "larger than 16 MiB.*a pickle, which can run any code"),
    "other format": (changed(format="pt"), "without metadata that says format"),
    "newer version": (changed(format_version="3"), "format version '3', but this program reads '1' and '2'"),
    "eight bits in a file of version 1": (in_eight_bits(format_version="1"), "down_blocks.0.attn1.coeff' is 'I8'"),
    "eight bits without scales": (changed(format_version="2"), "0 tensors of int8 need .* but there is none"),
    "scales of another number": (in_eight_bits(scales=torch.ones(3)), r"4 tensors of int8 need .* there is \[3\]"),
    "scales of another type": (in_eight_bits(scales=torch.ones(4).half()), r"but there is \[4\] of float16"),
    "a scale that is NaN": (
        in_eight_bits(scales=torch.full((4,), torch.nan)),
        "scales are nan to nan, expected 0 to 1",
    ),
    "a negative scale": (in_eight_bits(scales=torch.tensor([0.1, -0.1, 0.1, 0.1])), "scales are -0.1"),
    "a scale too large": (in_eight_bits(scales=torch.full((4,), 1e9)), "scales are 1000000000"),
    "steps that go too far": (in_eight_bits(scales=torch.ones(4)), "expected finite values of magnitude up to 100"),
    "other scales": (in_eight_bits(hash_of=new(1)), "incomplete, changed or damaged: the hash of its 4 tensors"),
    "large file of eight bits": (in_eight_bits(MAX_FILE // 4), "larger than 4 MiB, which no subject in eight bits is"),
    "no info": (changed(info=None), "no info"),
    "info that is no JSON": (changed(info="{"), "not JSON"),
    "wrong hash": (changed(**{"modelspec.hash_sha256": "0xabc"}), "'abc'... is recorded"),
    "missing tensor": (missing_tensor(), "incomplete, changed or damaged: the hash of its 3 tensors"),
    "extra tensor": (with_tensors(**{"unet/a.weight": torch.zeros(4, 4)}), "unexpected tensors 'unet/a.weight'"),
    "path tricks": (with_tensors(**{"unet/../../x.coeff": torch.zeros(4, 4)}), "unexpected tensors"),
    "endless name": (with_tensors(**{f"unet/{'a.' * 9_999}b.coeff": torch.ones(2, 3)}), r"a\.\.\..*coeff is \[2, 3\]"),
    "endless other name": (with_tensors(**{"x" * 99_999: torch.ones(2, 2)}), r"unexpected tensors 'xxx.*xxx\.\.\."),
    "endless name of a wrong type": (with_tensors(**{"x" * 99_999: torch.ones(2).long()}), r"xxx\.\.\. is 'I64'"),
    "endless name of NaN": (with_tensors(**{f"unet/{'a' * 9_999}.coeff": torch.full((1, 1), torch.nan)}), "holds nan"),
    "endless list": (changed(info='{"blocks":["' + '","'.join(["x"] * 257) + '"]}'), "blocks has 257 entries"),
    "misshapen": (with_tensors(**{f"unet/{LAYER}.coeff": torch.zeros(4, 5)}), r"attn1.coeff is \[4, 5\]"),
    "wrong type": (with_tensors(**{f"unet/{LAYER}.coeff": torch.zeros(4, 4).long()}), "attn1.coeff' is 'I64'"),
    "double": (with_tensors(**{f"unet/{LAYER}.coeff": torch.zeros(4, 4).double()}), "attn1.coeff' is 'F64'"),
    "NaN": (with_tensors(**{f"unet/{LAYER}.coeff": torch.full((4, 4), torch.nan)}), "attn1.coeff holds nan"),
    "infinity": (with_tensors(**{f"unet/{LAYER}.coeff": torch.full((4, 4), torch.inf)}), "attn1.coeff holds inf"),
    "absurd": (with_tensors(**{f"unet/{LAYER}.coeff": torch.full((4, 4), 1e9)}), "attn1.coeff holds 1000000000"),
    "bit flip": (new().to_bytes()[:-7] + b"\x00" + new().to_bytes()[-6:], "incomplete, changed or damaged|holds"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_an_error_that_names_the_file(kind: str, tmp_path: Path) -> None:
    data, message = DAMAGED[kind]
    path = tmp_path / "dog.safetensors"
    path.write_bytes(data)
    with pytest.raises(CoefficientsError, match=message) as caught:
        Coefficients.load(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "/etc/passwd", "C:\\x", "C:/x", "\\\\host\\share", "a..b", "a/b", "~", "a\x00b", "a\nb", "", "."],
)
def test_names_that_are_paths_are_refused(name: str) -> None:
    for tensor in (f"unet/{name}.coeff", name, f"{name}/token"):
        with pytest.raises(CoefficientsError, match="unexpected tensors"):
            Coefficients.from_bytes(with_tensors(**{tensor: torch.zeros(4, 4)}))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 1_999), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_change_of_bytes_loads_or_is_an_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(new().to_bytes())
    for position, value in changes:
        data[position % len(data)] = value
    with suppress(CoefficientsError):
        Coefficients.from_bytes(bytes(data))


def test_only_readable_regular_files_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new().save(tmp_path / "real.safetensors")
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "real.safetensors")
    (tmp_path / "lost.safetensors").symlink_to("/nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / FILE_NAME).symlink_to("../real.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CoefficientsError, match=r"is a symbolic link to .*real\.safetensors; give the file itself"):
        read(tmp_path / "link.safetensors")
    with pytest.raises(CoefficientsError, match="is a symbolic link to /nowhere"):
        read(tmp_path / "lost.safetensors")
    with pytest.raises(CoefficientsError, match=r"is a symbolic link to \.\./real\.safetensors"):
        Coefficients.load(tmp_path / "folder")
    with pytest.raises(CoefficientsError, match="is not a regular file but a named pipe"):
        read(tmp_path / "pipe.safetensors")
    with pytest.raises(CoefficientsError, match="there is no file"):
        read(tmp_path / "nothing.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_permission)  # tests may run as root, whom no permission stops
        with pytest.raises(CoefficientsError, match=r"real\.safetensors cannot be read: Permission denied"):
            read(tmp_path / "real.safetensors")


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 64 bytes: the kernel refuses the write, as it does when the disk is full."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "dog.safetensors"
    path.write_bytes(b"old")
    with full_disk(), pytest.raises(OSError, match="takes no larger file"):
        new().save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["open", "replace"])
def test_no_permission_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "dog.safetensors"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, no_permission)
        with pytest.raises(PermissionError):
            new().save(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_block_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    with suppress(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    with atomic_write(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        new().save(tmp_path / "nowhere" / "dog.safetensors")


# --- finding ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(CoefficientsError, match=f"holds no {FILE_NAME}"):
        locate(tmp_path)
    new().save(tmp_path / FILE_NAME)
    assert locate(str(tmp_path)) == tmp_path / FILE_NAME
    assert Coefficients.load(tmp_path) == new()


def test_missing_files_are_an_error() -> None:
    for missing in ("user/dog.safetensors", "./dog", "/tmp/nowhere/dog"):
        with pytest.raises(CoefficientsError, match="there is no file"):
            Coefficients.load(missing)


def test_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CoefficientsError, match="no file user/dog, and the Hub does not give it") as caught:
        Coefficients.load("user/dog")
    assert "\n" not in str(caught.value)

    commit, repository = "0" * 40, tmp_path / "models--user--dog"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    new().save(repository / "blobs" / "content")
    (snapshot / FILE_NAME).symlink_to(repository / "blobs" / "content")
    assert Coefficients.load("user/dog") == new()
