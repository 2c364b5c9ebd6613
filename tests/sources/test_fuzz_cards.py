"""Cards from strangers: whatever PNG comes in, out come a subject and parameters or our own errors.

`COEFF_FUZZ_EXAMPLES=10000` tries more cards than the suite does (a third as many as files);
`benchmarks/mutations.py` measures how long each takes.
"""

import io
import json
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from mutated_files import EXAMPLES, SUBJECT, VALID, joined
from mutated_files import split as split_file
from mutated_pictures import PNG, cards, codes
from PIL import Image

from coeff_diffusion import Coefficients, CoefficientsError, CoefficientsInfo
from coeff_diffusion.commands.info import collect_facts
from coeff_diffusion.images.files import MAX_TEXT, read_parameters
from coeff_diffusion.images.generation_info import PictureError, format_parameters
from coeff_diffusion.images.png import with_chunks
from coeff_diffusion.inference.replay import Part, Replay
from coeff_diffusion.inference.request import StudioError
from coeff_diffusion.sources.image_card import CHUNK, MAX_BYTES, embed, extract
from coeff_diffusion.subject.info import MAX_INFO
from coeff_diffusion.subject.safetensors_file import MAX_HEADER, MAX_TENSORS


def attempt(call: Callable[[], Any], *ours: type[Exception]) -> Any:
    """What a call gives, or None where it refuses; any other exception passes through and fails the test."""
    message = ""
    try:
        return call()
    except ours as error:
        message = str(error)
        return None
    finally:
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


@settings(max_examples=EXAMPLES // 10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=codes())
def test_any_picture_of_a_code_is_read_or_refused(path: Path, data: bytes) -> None:
    pytest.importorskip("zxingcpp")
    path.write_bytes(data)
    loaded = attempt(lambda: Coefficients.load(path), CoefficientsError)
    found = attempt(lambda: collect_facts(path), CoefficientsError, PictureError)
    assert (loaded is None) == (found is None)


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
    worst = worst_cards()
    for name, data in worst.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    script = Path(__file__).parents[1] / "memory_of_reading.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == worst.keys()
    assert {kind: most for kind, most in found.items() if most > MOST_MEMORY} == {}
    assert found["header of entries"] > 20 * 10**6  # the measure sees what there is
