"""Timelines and checkpoints that somebody has damaged or made up: read, or refused in one line.

`COEFF_FUZZ_EXAMPLES=1000` tries more of them than the suite does; `benchmarks/mutations.py` measures how long
each takes.
"""

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from mutated_files import EXAMPLES, joined, split
from mutated_runs import VALID_CHECKPOINT, VALID_TIMELINE, checkpoints, read_checkpoint, read_timeline, timelines

from coeff_diffusion import CoefficientsError
from coeff_diffusion.training.checkpoint import Checkpoint, CheckpointError

options = settings(
    max_examples=min(EXAMPLES, max(100, EXAMPLES // 3)), deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@options
@given(timelines())
def test_any_timeline_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "timeline"
    path.write_bytes(data)
    read_timeline(path)


@options
@given(checkpoints())
def test_any_checkpoint_is_gone_on_from_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "checkpoint"
    path.write_bytes(data)
    read_checkpoint(path)


def test_whole_ones_are_read(tmp_path: Path) -> None:
    (tmp_path / "timeline").write_bytes(VALID_TIMELINE)
    (tmp_path / "checkpoint").write_bytes(VALID_CHECKPOINT)
    assert list(read_timeline(tmp_path / "timeline")) == [1, 2]
    assert isinstance(read_checkpoint(tmp_path / "checkpoint"), Checkpoint)


def with_metadata(data: bytes, **changes: str) -> bytes:
    header, tensors = split(data)
    header["__metadata__"] |= changes
    return joined(header, tensors)


def with_state(**changes: object) -> bytes:
    state = json.loads(split(VALID_CHECKPOINT)[0]["__metadata__"]["state"])
    return with_metadata(VALID_CHECKPOINT, state=json.dumps({**state, **changes}))


def with_tensor(data: bytes, name: str, **changes: object) -> bytes:
    header, tensors = split(data)
    header[name] |= changes
    return joined(header, tensors)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (with_metadata(VALID_TIMELINE, infos="[" * 100_000), "its 'infos' is no JSON"),
        (with_metadata(VALID_TIMELINE, infos="[" * 50 + "]" * 50), "is nested deeper than 16 times"),
        (with_metadata(VALID_TIMELINE, infos='{"Infinity": "{}"}'), "does not say where its steps came from"),
        (with_metadata(VALID_TIMELINE, infos='{"-1": "{}"}'), "does not say where its steps came from"),
        (with_metadata(VALID_TIMELINE, infos=json.dumps({"9" * 5_000: "{}"})), "does not say where its steps came"),
        (with_metadata(VALID_TIMELINE, infos='{"1": 1, "2": 2}'), "does not say where its steps came from"),
        (with_metadata(VALID_TIMELINE, losses="[1e999]"), "its losses are [inf]"),
        (with_metadata(VALID_TIMELINE, losses="[NaN]"), "its 'losses' is no JSON"),
        (with_metadata(VALID_TIMELINE, losses='"123"'), "its losses are '123'"),
        (with_metadata(VALID_TIMELINE, losses=f"[{10**400}]"), "expected a list of finite numbers"),
        (with_tensor(VALID_TIMELINE, "step_000001/text_encoder/token", dtype="I32"), "is of type I32, expected F32"),
    ],
)  # fmt: skip
def test_damaged_timelines(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "t").write_bytes(data)
    error = read_timeline(tmp_path / "t")
    assert isinstance(error, CoefficientsError)
    assert said in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (with_metadata(VALID_CHECKPOINT, state="[" * 100_000), "its 'state' is no JSON"),
        (with_metadata(VALID_CHECKPOINT, state="[]"), "no 'step' that makes sense"),
        (with_state(step=float("1e300")), "no 'step' that makes sense"),
        (with_state(step=True), "no 'step' that makes sense"),
        (with_state(step=-1), "it is of step -1"),
        (with_state(step=10**30), "and has the losses of 3 steps"),
        (with_state(losses=[0.5, None, 0.5]), "its losses are"),
        (with_state(identity=[]), "no 'identity' that makes sense"),
        (with_state(identity={"a\n\x1b": 1}), r"belongs to another run: 'a\n\x1b' was 1 and is None; seed was None"),
        (with_state(optimization=[]), "no 'optimization' that makes sense"),
        (with_state(optimization={}), "its schedule is at step None"),
        (with_state(optimization={"lr_scheduler": {"last_epoch": 10**400}}), "its schedule is at step 1000"),
        (with_state(optimization={"lr_scheduler": {"last_epoch": 1.5}}), "its schedule is at step 1.5"),
        (with_tensor(VALID_CHECKPOINT, "parameters/coeff/a", shape=[4]), "other names or shapes"),
        (with_tensor(VALID_CHECKPOINT, "parameters/coeff/a", dtype="I32"), "is of type I32, expected F32"),
        (with_tensor(VALID_CHECKPOINT, "optimizer/0/exp_avg", shape=[1, 4]), "its means of parameter 0 have other"),
        (with_tensor(VALID_CHECKPOINT, "optimizer/0/step", shape=[1]), "its means of parameter 0 have other"),
    ],
)  # fmt: skip
def test_damaged_checkpoints(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "c").write_bytes(data)
    error = read_checkpoint(tmp_path / "c")
    assert isinstance(error, CheckpointError)
    assert said in str(error)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "endless"):
        assert "it is no regular file" in str(read_timeline(tmp_path / name))
        assert "it is no regular file" in str(read_checkpoint(tmp_path / name))
