"""Cards from strangers: whatever PNG comes in, out come a subject and parameters or our own errors, and soon.

`COEFF_FUZZ_EXAMPLES=10000` tries more cards than the suite does (a third as many as files).
"""

import io
import json
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_files import EXAMPLES, JUNK, MOST_SECONDS, SUBJECT, VALID, files, joined
from mutated_files import split as split_file
from PIL import Image

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.images.files import MAX_TEXT, read_parameters
from coeff_diffusion.images.generation_info import Parameters, PictureError, format_parameters
from coeff_diffusion.images.png import SIGNATURE, with_chunks
from coeff_diffusion.inference.replay import Part, Replay
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.sources.image_card import CHUNK, MAX_BYTES, embed, extract
from coeff_diffusion.subject.info import MAX_INFO
from coeff_diffusion.subject.safetensors_file import MAX_HEADER, MAX_TENSORS

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


def attempt(call: Callable[[], Any], *ours: type[Exception]) -> Any:
    """What a call gives, or None where it refuses; any other exception passes through and fails the test."""
    start, message = time.process_time(), ""  # of this process alone: the machine may be busy
    try:
        return call()
    except ours as error:
        message = str(error)
        return None
    finally:
        assert time.process_time() - start < MOST_SECONDS
        assert "\n" not in message
        assert len(message) < 2_000


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cards") / "card.png"


@settings(max_examples=EXAMPLES // 3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=cards())
def test_any_card_is_read_or_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    carried = attempt(lambda: extract(path), CoefficientsError)
    loaded = attempt(lambda: Coefficients.load(path), CoefficientsError)
    parameters = attempt(lambda: read_parameters(path), PictureError)
    for subject in [*(carried or []), *([loaded] if loaded else [])]:
        assert all(bool(tensor.isfinite().all()) for tensor in subject.named_tensors().values())
    if carried:  # then they can be handed on
        assert (loaded is not None) == (len(carried) == 1)
        assert extract(embed(PNG, carried)) == carried
    if parameters is not None:
        format_parameters(parameters)
        replay = Replay(path, parameters, carried or [])
        attempt(replay.request, StudioError)
        attempt(lambda: replay.parts([Part(SUBJECT, source="dog.safetensors")]), StudioError)


def test_the_cards_are_worth_trying(path: Path) -> None:
    """Some mutated cards are sound, many carry a damaged subject; were all refused as PNGs, nothing would be tested."""
    seen: list[str] = []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(data=cards())
    def look(data: bytes) -> None:
        try:
            seen.append("sound" if extract(data) else "none")
        except CoefficientsError as error:
            seen.append("damaged subject" if str(error).startswith("subject") else "damaged PNG")

    look()
    assert {kind for kind in seen if seen.count(kind) >= 5} == {"sound", "none", "damaged subject", "damaged PNG"}


# --- memory -----------------------------------------------------------------------------------------------------------

MOST_MEMORY = 100 * 10**6


def subject_file(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def card(*contents: bytes) -> bytes:
    return with_chunks(PNG, [(CHUNK, content) for content in contents])


def described(kind: bytes, *contents: bytes) -> bytes:
    return with_chunks(PNG, [(kind, content) for content in contents])


def many_tensors(count: int) -> bytes:
    header, _ = split_file(VALID)
    metadata = header["__metadata__"]
    del metadata["modelspec.hash_sha256"]
    entries = {
        f"unet/{i:x}.coeff": {"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)
    }
    text = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":"))
    return subject_file(text.encode()) + bytes(4 * count)


def with_extra(value: str) -> bytes:
    header, tensors = split_file(VALID)
    header["__metadata__"]["info"] = f'{{"trigger":"sks dog","novelty":{value}}}'
    return joined(header, tensors)


def worst_cards() -> dict[str, bytes]:
    """What asks for the most memory, as far as the limits let it."""
    room = MAX_HEADER - 100
    token = torch.full((64, 8192), 0.01)
    tokens = {"text_encoder": token[:60], "text_encoder_2": token[:60]}
    large = Coefficients({"a.b": torch.eye(128)}, tokens, CoefficientsInfo(trigger="x")).to_bytes()
    bomb = zlib.compress(bytes(100 * 10**6))
    full = zlib.compress(b"a" * MAX_TEXT)
    wide = ("aa: " + "a" * (MAX_TEXT // 4) + "\U0001f436").encode()[:MAX_TEXT]
    photo = io.BytesIO()
    Image.new("RGBA", (4_096, 3_072)).save(photo, format="PNG", compress_level=1)
    return {
        "a sound card": card(VALID),
        "header of dicts": card(subject_file(b'{"a":[' + b"{}," * (room // 3) + b"0]}")),
        "header of entries": card(subject_file(b'{"a":[' + b'{"":0},' * (room // 7) + b"0]}")),
        "header of names": card(subject_file(b"{" + b",".join(b'"%x":{"":0}' % i for i in range(room // 16)) + b"}")),
        "header of floats": card(subject_file(b'{"a":[' + b"1e1," * (room // 4) + b"0]}")),
        "header of brackets": card(subject_file(b"[" * room)),
        "header two bytes a letter": card(subject_file(('{"a":"' + "a" * room + "狗" + '"}').encode()[:room])),
        "info of dicts": card(with_extra("[" + "{}," * (room // 3 - 500) + "0]")),
        "largest info": card(with_extra("[" + "{}," * (MAX_INFO // 3 - 50) + "0]")),
        "most tensors": card(many_tensors(MAX_TENSORS)),
        "too many tensors": card(many_tensors(25_000)),
        "largest subject": card(large),
        "sixteen subjects": card(*[large[: MAX_BYTES // 16]] * 16),
        "claims 2 GiB": card(VALID).replace(len(VALID).to_bytes(4, "big") + CHUNK, b"\x7f\xff\xff\xff" + CHUNK),
        "30 MB of a chunk": card(bytes(30 * 10**6)),
        "30 MB of pixels": described(b"IDAT", bytes(30 * 10**6)),
        "text bomb": described(b"zTXt", b"parameters\0\0" + bomb),
        "international text bomb": described(b"iTXt", b"parameters\0\1\0\0\0" + bomb),
        "many full texts": described(b"zTXt", *[b"parameters\0\0" + full] * 900),
        "16 MB of texts": described(b"tEXt", *[b"workflow\0" + b"a" * 1_000_000] * 16),
        "fields": described(b"tEXt", b"parameters\0" + b"\n" + b"aa:," * (MAX_TEXT // 4 - 10)),
        "different fields": described(
            b"tEXt", b"parameters\0a\n" + b",".join(b"%x:" % i for i in range(16**4, 16**4 + MAX_TEXT // 8))
        ),
        "one quoted field": described(b"tEXt", b'parameters\0a\naa: "' + b"\\a" * (MAX_TEXT // 2 - 20) + b'"'),
        "four bytes a letter": described(b"iTXt", b"parameters\0\0\0\0\0" + wide),
        "subjects of dicts": described(
            b"tEXt", b'parameters\0a\nSteps: 1, Seed: 1, Subjects: "[' + b"{}," * (MAX_TEXT // 3 - 50) + b'0]"'
        ),
        "a picture without a subject": photo.getvalue(),
        "the same with texts": with_chunks(
            photo.getvalue(), [(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**6)))] * 60
        ),
    }


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process' peak of memory")
def test_the_worst_cards_stay_below_100_mb(tmp_path: Path) -> None:
    for name, data in worst_cards().items():
        (tmp_path / f"{name}.png").write_bytes(data)
    script = Path(__file__).parents[1] / "memory_of_reading.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == worst_cards().keys()
    assert {kind: most for kind, most in found.items() if most > MOST_MEMORY} == {}
    assert found["header of entries"] > 20 * 10**6  # the measure sees what there is
