"""Files from strangers: whatever bytes come in, out comes a subject or a `CoefficientsError`, and soon.

`COEFF_FUZZ_EXAMPLES=10000` tries more files than the suite does.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.files import MAX_FILE, MAX_HEADER, from_bytes, to_bytes

EXAMPLES = int(os.environ.get("COEFF_FUZZ_EXAMPLES", "300"))
MOST_SECONDS = 2.0  # of the processor, hundreds of times what these files need
MOST_MEMORY = 100 * 10**6
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
INFO = CoefficientsInfo(name="dog", trigger="sks dog", base_sample=(0.5, 0.25), blocks=("up_blocks.*",), final_loss=0.1)
SUBJECT = Coefficients(
    {LAYER: torch.linspace(-1, 1, 16).view(4, 4), "mid_block.attn2": torch.eye(2)},
    {"text_encoder": torch.linspace(-0.1, 0.1, 8)[None]},
    INFO,
)
VALID = to_bytes(SUBJECT)
NARROW = to_bytes(SUBJECT, torch.float16)

BAD_NAMES = (
    "../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "a..b", ".", "", "a/b", "a\x00b", "a\nb", "é", "\ud800",
    "a." * 5_000,
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from([f"unet.{name}.coeff" for name in BAD_NAMES]),
    st.sampled_from([f"{name}.token" for name in ("text_encoder_2", "text_encoder_3", "..", "unet")]),
    st.sampled_from(["__metadata__", "unet.0.coeff", "unet.coeff", f"unet.{LAYER}.coeff\n", LAYER, *BAD_NAMES]),
    st.text(max_size=40),
)
DTYPES: st.SearchStrategy[Any] = st.sampled_from(
    ["F32", "F16", "BF16", "F64", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "f32", "", None, 1, []]
)
SIZES = st.one_of(st.integers(-2, 20), st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30]))
SHAPES = st.one_of(st.lists(SIZES, max_size=5), st.sampled_from([[4, 4], [16], [2, 8], [1, 16], [], [4, 4.0], None]))
OFFSETS = st.one_of(st.lists(SIZES, max_size=3), st.sampled_from([[0, 64], [64, 0], [0, 2**64 - 1], None, "0"]))
JUNK = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
        st.sampled_from([10**308, 10**309, -(10**400), "\ud800", "\x1b[2J", "x" * 2_001, "sks\x00dog", ""]),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)  # fmt: skip
INFO_KEYS = st.sampled_from([*CoefficientsInfo.__dataclass_fields__, "novelty"])
METADATA_KEYS = st.sampled_from(["format", "format_version", "info", "modelspec.hash_sha256", "modelspec.title", "x"])
VALUES = st.one_of(
    st.floats(width=32), st.sampled_from([float("nan"), float("inf"), -float("inf"), 1e38, 100.0, 100.1, -0.0, 1e-45])
)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """A valid file after a few mutations of its parts, and then perhaps of its bytes."""
    header, tensors = split(draw(st.sampled_from([VALID, VALID, NARROW])))
    if draw(st.booleans()):  # without the hash the deeper checks have to hold
        del header["__metadata__"]["modelspec.hash_sha256"]
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["value", "tensor", "rename", "info", "metadata", "drop", "add"]))
        entries = [name for name, entry in header.items() if name != "__metadata__" and isinstance(entry, dict)]
        metadata = header.get("__metadata__")
        if kind == "value":
            tensors = with_value(tensors, draw(st.integers(0, 100)), draw(VALUES))
        elif kind == "tensor" and entries:
            field = draw(st.sampled_from(["dtype", "shape", "data_offsets", "other"]))
            values = {"dtype": DTYPES, "shape": SHAPES, "data_offsets": OFFSETS, "other": JUNK}
            header[draw(st.sampled_from(entries))][field] = draw(values[field])
        elif kind == "rename" and entries:
            header[draw(NAMES)] = header.pop(draw(st.sampled_from(entries)))
        elif kind == "info" and isinstance(metadata, dict) and isinstance(metadata.get("info"), str):
            changed = {**json.loads(metadata["info"]), draw(INFO_KEYS): draw(JUNK)}
            metadata["info"] = json.dumps(changed)
        elif kind == "metadata" and isinstance(metadata, dict):
            metadata[draw(METADATA_KEYS)] = draw(JUNK)
            return joined(header, tensors)
        elif kind == "drop":
            header.pop(draw(st.sampled_from(list(header))), None) if header else None
        elif kind == "add":
            entry = {"dtype": draw(DTYPES), "shape": draw(SHAPES), "data_offsets": draw(OFFSETS)}
            header[draw(NAMES)] = draw(st.one_of(st.just(entry), JUNK))
    return draw(damaged(joined(header, tensors)))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes as a bad disk, a bad line or a bad person leaves them."""
    kind = draw(st.sampled_from(["as it is", "flip", "cut", "grow", "length", "repeat", "splice"]))
    if kind == "flip":
        found = bytearray(data)
        for bit in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=8)):
            found[bit // 8] ^= 1 << bit % 8
        return bytes(found)
    if kind == "cut":
        return data[: draw(st.integers(0, len(data)))]
    if kind == "grow":
        return data + draw(st.binary(min_size=1, max_size=64))
    if kind == "length":
        near = st.integers(-16, 16).map(lambda n: max(0, int.from_bytes(data[:8], "little") + n))
        far = st.sampled_from([0, 1, MAX_HEADER, MAX_HEADER + 1, 2**31, 2**32, 2**63, 2**64 - 1])
        return draw(st.one_of(near, far)).to_bytes(8, "little") + data[8:]
    header, tensors = data[8 : 8 + int.from_bytes(data[:8], "little")], data[8 + int.from_bytes(data[:8], "little") :]
    if kind == "repeat":  # the first entry again, at the end
        text = header.decode().strip()
        first = text[1:].split("},", 1)[0]
        return encoded(f"{text[:-1]},{first}}}}}".encode(), tensors)
    if kind == "splice":
        at, junk = draw(st.integers(0, len(header))), draw(st.binary(max_size=16))
        return encoded(header[:at] + junk + header[at + len(junk) :], tensors)
    return data


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    return encoded(json.dumps(header).encode(), tensors)


def encoded(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


def with_value(tensors: bytes, position: int, value: float) -> bytes:
    changed = torch.frombuffer(bytearray(tensors), dtype=torch.float32)
    changed[position % len(changed)] = value
    return changed.numpy().tobytes()


def outcome(data: bytes) -> Coefficients | CoefficientsError:
    """What reading gives; any other exception passes through and fails the test."""
    start = time.process_time()  # of this process alone: another one may keep the machine busy
    try:
        return from_bytes(data)
    except CoefficientsError as error:
        return error
    finally:
        assert time.process_time() - start < MOST_SECONDS


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(files())
def test_any_file_is_a_subject_or_an_error(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, Coefficients):  # then it is a sound one
        assert all(bool(tensor.isfinite().all()) for tensor in found.named_tensors().values())
        assert all("/" not in name and ".." not in name for name in found.named_tensors())


@settings(max_examples=EXAMPLES // 3, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_error(data: bytes) -> None:
    assert isinstance(outcome(data), CoefficientsError)


def with_entry(entry: Any) -> bytes:
    header, tensors = split(VALID)
    del header["__metadata__"]["modelspec.hash_sha256"]
    return joined({**header, "unet.a.coeff": entry}, tensors)


def with_info(**fields: Any) -> bytes:
    header, tensors = split(VALID)
    header["__metadata__"]["info"] = json.dumps({**json.loads(INFO.to_json()), **fields})
    return joined(header, tensors)


def with_info_text(text: str) -> bytes:
    header, tensors = split(VALID)
    header["__metadata__"]["info"] = text
    return joined(header, tensors)


def many_names_and_one_twice() -> bytes:
    """Fits the header's limit; a quadratic search for the repeated name would take minutes."""
    return encoded(("{" + "".join(f'"{i}":0,' for i in range(120_000)) + '"119999":0}').encode(), b"")


HARD = {
    "huge integer": with_info(final_loss=10**400),
    "no integer that torch knows": with_entry({"dtype": "F32", "shape": [0, 2**63], "data_offsets": [112, 112]}),
    "strides beyond 64 bits": with_entry({"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [112, 112]}),
    "name repeated among many": many_names_and_one_twice(),
    "infinity in an unknown field": with_info_text('{"novelty": 1e999}'),
    "nesting in an unknown field": with_info_text('{"novelty": ' + "[" * 900 + "]" * 900 + "}"),
    "header of nothing but lists": encoded(b'{"a":[' + b"[]," * 690_000 + b"[]]}", b""),
    "many blocks": with_info(blocks=["x"] * 100_000),
    "largest file": VALID + b"\0" * (MAX_FILE - len(VALID)),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARD)
def test_hard_cases(kind: str) -> None:
    found = outcome(HARD[kind])
    if isinstance(found, Coefficients):
        to_bytes(found)  # what can be read can be written again


def filled(dtype: torch.dtype) -> bytes:
    """A sound subject, as large as one may be; narrow numbers take twice their room when they are read."""
    tokens = {owner: torch.ones(64, 8_192) for owner in ("text_encoder", "text_encoder_2")}
    room = MAX_FILE // dtype.itemsize - sum(token.numel() for token in tokens.values())
    coeffs = {f"down_blocks.{number}.attn1": torch.ones(128, 128) for number in range(room // 128**2 - 8)}
    return to_bytes(Coefficients(coeffs, tokens, INFO), dtype)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process' peak of memory")
def test_the_worst_files_stay_below_100_mb(tmp_path: Path) -> None:
    worst = {**HARD, "float32": filled(torch.float32), "float16": filled(torch.float16)}
    for name, data in worst.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    script = Path(__file__).with_name("memory_of_reading.py")
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == worst.keys()
    assert {kind: most for kind, most in found.items() if most > MOST_MEMORY} == {}
    assert found["float16"] > 32 * 10**6  # the measure sees what there is
