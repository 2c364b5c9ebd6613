"""Pictures from strangers: strategies that damage cards, pictures of codes and the texts of pictures in every way."""

import functools
import io
import json
import zlib

import numpy as np
import segno
import torch
from hypothesis import strategies as st
from mutated_files import JUNK, SUBJECT, VALID, files
from PIL import Image

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.families.layout import known_layout
from coeff_diffusion.images.generation_info import Parameters, format_parameters
from coeff_diffusion.images.png import SIGNATURE
from coeff_diffusion.sources.image_card import CHUNK
from coeff_diffusion.sources.qr_payload import pack

Chunks = list[tuple[bytes, bytes]]


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).save(file, format="PNG")
    return file.getvalue()


PNG = _picture()
TEXT = format_parameters(
    Parameters("a sks dog", "blurry", {"dog": 0.5}, seed=7, width=8, height=8, batch_size=2, batch_position=1,
               guidance_rescale=0.1, scheduler="DDIM", gate="always", model="embedded", base_hash="0123456789ab",
               precision="float16", hashes={"dog": SUBJECT.sha256[:12]})
)  # fmt: skip
KINDS = st.one_of(
    st.sampled_from([CHUNK, b"tEXt", b"zTXt", b"iTXt", b"IHDR", b"IDAT", b"IEND", b"coef", b"\0\0\0\0", b"co\nf"]),
    st.binary(min_size=4, max_size=4),
)  # fmt: skip
LENGTHS = st.sampled_from([0, 1, 12, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
VALUES = st.one_of(JUNK.map(json.dumps), st.sampled_from(["9" * 5_000, "1e999", "NaN", "[" * 3_000, "-1", "1x1x1", ""]))
FIELDS = st.sampled_from(
    ["Steps", "Sampler", "CFG scale", "Guidance rescale", "Seed", "Size", "Model", "Base hash", "Precision",
     "Batch size", "Batch pos", "Gate", "Subjects", "Subject hashes", "Exact prompt",
     "Layer strengths", "Act from", "Act until", "x" * 200]
)  # fmt: skip


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """The parameters with some fields changed, added or cut."""
    text = TEXT
    for _ in range(draw(st.integers(0, 3))):
        value = draw(st.one_of(VALUES, VALUES.map(json.dumps)))
        text += f", {draw(FIELDS)}: {value}" if draw(st.booleans()) else f"\n{draw(FIELDS)}: {value}"
    junk, at = draw(st.text(max_size=8)), draw(st.integers(0, len(text)))
    text = draw(st.sampled_from([text, text[:at], text[:at] + junk + text[at:], junk]))
    return text.encode("utf-8", "surrogatepass")


@st.composite
def text_chunks(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A text chunk of each kind, sound, damaged or a bomb."""
    key = draw(st.sampled_from([b"parameters", b"parameters", b"parameters", b"comment", b"", b"k" * 80]))
    text = draw(texts())
    packed = draw(st.sampled_from([zlib.compress(text), zlib.compress(bytes(300_000)), zlib.compress(text)[:-2], text]))
    flag, method = draw(st.sampled_from([b"\0", b"\1", b"\2"])), draw(st.sampled_from([b"\0", b"\0", b"\1", b""]))
    return draw(
        st.sampled_from(
            [
                (b"tEXt", key + b"\0" + text),
                (b"zTXt", key + b"\0" + method + packed),
                (b"iTXt", key + b"\0" + flag + method + b"de\0\0" + (packed if flag == b"\1" else text)),
            ]
        )
    )


@st.composite
def cards(draw: st.DrawFn) -> bytes:
    """A card after a few mutations of its chunks, and then perhaps of its bytes."""
    header, *rest, end = split(PNG)
    contents = draw(st.lists(st.one_of(st.just(VALID), files(), files(), st.binary(max_size=40)), max_size=2))
    inside = [*rest, draw(text_chunks()), *((CHUNK, content) for content in contents)]
    chunks = [header, *draw(st.permutations(inside)), end]
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        kind = draw(st.sampled_from(["rename", "drop", "repeat", "swap"]))
        at, other = (draw(st.integers(0, len(chunks) - 1)) for _ in range(2))
        if kind == "rename":
            chunks[at] = (draw(KINDS), chunks[at][1])
        elif kind == "drop" and len(chunks) > 1:
            del chunks[at]
        elif kind == "repeat":
            chunks[at:at] = [chunks[at]] * draw(st.sampled_from([1, 20, 2_000]))
        elif kind == "swap":
            chunks[at], chunks[other] = chunks[other], chunks[at]
    return draw(damaged(chunks))


@st.composite
def damaged(draw: st.DrawFn, chunks: Chunks) -> bytes:
    """The bytes of these chunks as a bad disk, a bad line or a bad person leaves them."""
    parts = [SIGNATURE, *(encoded(*chunk) for chunk in chunks)]
    at = draw(st.integers(1, len(parts) - 1))
    kind = draw(st.sampled_from(["as it is", "as it is", "as it is", "flip", "cut", "grow", "length", "checksum"]))
    if kind == "length":
        length = draw(st.one_of(LENGTHS, st.integers(-12, 12).map(lambda n: max(0, len(parts[at]) - 12 + n))))
        parts[at] = length.to_bytes(4, "big") + parts[at][4:]
    if kind == "checksum":
        parts[at] = parts[at][:-4] + draw(st.binary(min_size=4, max_size=4))
    data = bytearray(b"".join(parts))
    if kind == "flip":
        for bit in draw(st.lists(st.integers(0, 8 * len(data) - 1), min_size=1, max_size=8)):
            data[bit // 8] ^= 1 << bit % 8
    if kind == "cut":
        del data[draw(st.integers(0, len(data))) :]
    if kind == "grow":
        data += draw(st.binary(min_size=1, max_size=40))
    return bytes(data)


def split(data: bytes) -> Chunks:
    chunks, place = [], len(SIGNATURE)
    while place < len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += length + 12
    return chunks


def encoded(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


# --- pictures of codes ------------------------------------------------------------------------------------------------

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@functools.cache
def payload() -> bytes:
    """What a whole code holds; the layers of its base are known by heart."""
    base = known_layout("")
    assert base is not None
    generator = torch.Generator().manual_seed(0)
    coeffs = {path: torch.rand(heads, heads, generator=generator) / 9 for path, heads in base.heads.items()}
    info = CoefficientsInfo(name="dog", trigger="sks dog", class_word="dog", base_fingerprint=base.fingerprint)
    return pack(Coefficients(coeffs, info=info))


@st.composite
def payloads(draw: st.DrawFn) -> bytes:
    """The content of a code after a few mutations, some of them under a checksum of their own."""
    data = payload()
    is_sealed = draw(st.booleans())  # then the deeper checks have to hold
    changed = data[:-4] if is_sealed else data
    for _ in range(draw(st.integers(0, 3))):
        # Half of the changes go to the beginning, where every byte means something.
        at = draw(st.one_of(st.integers(0, 60), st.integers(0, len(data)))) % (len(changed) or 1)
        new = draw(st.binary(max_size=3))
        changed = changed[:at] + new + changed[at + 1 :]
    return changed + zlib.crc32(changed).to_bytes(4, "little") if is_sealed else changed


@st.composite
def codes(draw: st.DrawFn) -> bytes:
    """A picture of a code, in any format, and then perhaps with other bytes."""
    # Looking for the best mask takes most of the time.
    code = segno.make_qr(draw(payloads()) or b"?", error="L", mode="byte", mask=0)
    dark = np.array([list(row) for row in code.matrix_iter(scale=4, border=4)], dtype=bool)
    picture, file = Image.fromarray(~dark).convert("L"), io.BytesIO()
    picture.save(file, draw(st.sampled_from(FORMATS)))
    data = file.getvalue()
    for _ in range(draw(st.sampled_from([0, 0, 1, 3]))):
        at = draw(st.one_of(st.integers(0, 100), st.integers(0, len(data)))) % len(data)
        new = draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\xff" * 4, b"\x7f\xff\xff\xff", bytes(4)])))
        data = draw(st.sampled_from([data[:at] + new + data[at + len(new) :], data[:at] + new + data[at:], data[:at]]))
        data = data or b"?"
    return data
