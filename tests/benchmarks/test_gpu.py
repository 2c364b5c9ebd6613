"""The script for a GPU works anywhere, so that none of its few minutes on one is lost."""

import json
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import gpu
import pytest


def settings(**changes: Any) -> Namespace:
    usual = {"topology": ["embedded"], "dtype": ["float32"], "side": 8, "repeats": 1, "compile": False}
    return Namespace(**{**usual, **changes})


def test_it_checks_times_and_writes_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (2,))
    with (tmp_path / "gpu.jsonl").open("w") as file:
        report = gpu.Report(file)
        assert gpu.check(settings(), report, "cpu")
        gpu.time_layers(settings(), report, "cpu")
        assert gpu.measure(settings(), report, "cpu", math.inf) == []
    records = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text().splitlines()]
    assert [record["layer"] for record in records if "layer" in record] == ["embedded base self, 8 x 8", "embedded-8"]
    assert records[1]["base"] > 0
    assert records[1]["recombined"] > 0
    timed = [record for record in records if "way" in record]
    assert [(one["what"], one["batch"], one["way"]) for one in timed] == [
        *(("sampling", batch, way) for batch in gpu.BATCHES for way in ("base", "recombined", "LoRA rank 4")),
        *(("training", 1, way) for way in ("LoRA rank 4", "recombined")),
    ]
    assert all(one["ratio"] == 1 for one in timed if one["way"] == ("base", "LoRA rank 4")[one["what"] == "training"])
    assert all(one["milliseconds"] > 0 and one["first_seconds"] > 0 for one in timed)
    assert capsys.readouterr().out.count("64 px, float32") == len(timed)


def test_what_is_wrong_is_called_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = gpu.recombined_attention
    monkeypatch.setattr(gpu, "recombined_attention", lambda *inputs: right(*inputs) * (1 + 1e-3))
    assert not gpu.check(settings(), gpu.Report(None), "cpu")
    assert "**WRONG**" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_left_and_the_most_wanted_comes_first() -> None:
    wanted = settings(topology=["sd15", "sdxl"], dtype=["bfloat16", "float16"], side=0, compile=True)
    left = gpu.measure(wanted, gpu.Report(None), "cpu", time.perf_counter() - 1)
    assert left == gpu.cases(wanted)
    assert str(left[0]) == "sd15, sampling, batch 2, 512 px, bfloat16"
    assert {case.topology for case in left if case.compiled} == {"sd15", "sdxl"}
    assert [case.dtype for case in left] == sorted((case.dtype for case in left), key=["bfloat16", "float16"].index)
    assert len(left) == len(set(left)) == 26
