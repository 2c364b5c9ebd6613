"""Files from strangers: whatever bytes come in, out comes a subject or a `CoefficientsError`.

`COEFF_FUZZ_EXAMPLES=10000` tries more files than the suite does; `benchmarks/mutations.py` measures how long
each takes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutated_files import EXAMPLES, INFO, VALID, encoded, files, joined, split

from coeff_diffusion import Coefficients, CoefficientsError
from coeff_diffusion.subject.safetensors_file import MAX_FILE

MOST_MEMORY = 100 * 10**6


def outcome(data: bytes) -> Coefficients | CoefficientsError:
    """What reading gives; any other exception passes through and fails the test."""
    try:
        return Coefficients.from_bytes(data)
    except CoefficientsError as error:
        return error


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(files())
def test_any_file_is_a_subject_or_an_error(data: bytes) -> None:
    found = outcome(data)
    if isinstance(found, Coefficients):  # then it is a sound one
        assert all(bool(tensor.isfinite().all()) for tensor in found.named_tensors().values())
        assert all(name.count("/") == 1 and ".." not in name for name in found.named_tensors())


@settings(max_examples=EXAMPLES // 3, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_error(data: bytes) -> None:
    assert isinstance(outcome(data), CoefficientsError)


def with_entry(entry: Any) -> bytes:
    header, tensors = split(VALID)
    del header["__metadata__"]["modelspec.hash_sha256"]
    return joined({**header, "unet/a.coeff": entry}, tensors)


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
        found.to_bytes()  # what can be read can be written again


def filled(dtype: torch.dtype) -> bytes:
    """A sound subject, as large as one may be; narrow numbers take twice their room when they are read."""
    tokens = {owner: torch.ones(64, 8_192) for owner in ("text_encoder", "text_encoder_2")}
    room = MAX_FILE // dtype.itemsize - sum(token.numel() for token in tokens.values())
    coeffs = {f"down_blocks.{number}.attn1": torch.ones(128, 128) for number in range(room // 128**2 - 8)}
    return Coefficients(coeffs, tokens, INFO).to_bytes(dtype)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process' peak of memory")
def test_the_worst_files_stay_below_100_mb(tmp_path: Path) -> None:
    worst = {**HARD, "float32": filled(torch.float32), "float16": filled(torch.float16)}
    for name, data in worst.items():
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    script = Path(__file__).parents[1] / "memory_of_reading.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=280, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == worst.keys()
    assert {kind: most for kind, most in found.items() if most > MOST_MEMORY} == {}
    assert found["float16"] > 32 * 10**6  # the measure sees what there is
