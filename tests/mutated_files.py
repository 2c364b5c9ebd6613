"""Files from strangers: strategies that damage a subject's file in every way a disk, a line or a person does."""

import json
import os
from typing import Any

import torch
from hypothesis import strategies as st

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.subject.safetensors_file import MAX_HEADER

EXAMPLES = int(os.environ.get("COEFF_FUZZ_EXAMPLES", "300"))
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
INFO = CoefficientsInfo(name="dog", trigger="sks dog", base_sample=(0.5, 0.25), blocks=("up_blocks.*",), final_loss=0.1)
SUBJECT = Coefficients(
    {LAYER: torch.linspace(-1, 1, 16).view(4, 4), "mid_block.attn2": torch.eye(2)},
    {"text_encoder": torch.linspace(-0.1, 0.1, 8)[None]},
    INFO,
)
VALID = SUBJECT.to_bytes()
NARROW = SUBJECT.to_bytes(torch.float16)
STEPS = SUBJECT.to_bytes(torch.int8)

BAD_NAMES = (
    "../x", "/etc/passwd", "C:\\x", "\\\\host\\share", "a..b", ".", "", "a/b", "a\x00b", "a\nb", "é", "\ud800",
    "a." * 5_000,
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from([f"unet/{name}.coeff" for name in BAD_NAMES]),
    st.sampled_from([f"{name}/token" for name in ("text_encoder_2", "text_encoder_3", "..", "unet")]),
    st.sampled_from(["__metadata__", "unet/0.coeff", "unet/coeff", f"unet/{LAYER}.coeff\n", LAYER, *BAD_NAMES]),
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
    header, tensors = split(draw(st.sampled_from([VALID, VALID, NARROW, STEPS])))
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
