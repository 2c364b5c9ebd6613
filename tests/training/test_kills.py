"""Trainings that are ended in the middle by four signals go on as if nothing had happened; `benchmarks/kills.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these signals nor fork")
def test_a_run_that_was_ended_by_any_signal_goes_on_equal(tiny_base_dir: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "benchmarks/kills.py", "--kills", "4", "--base", str(tiny_base_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 resumed equal, 0 did not" in done.stdout
    assert "SIGKILL: 1 with exit code -9" in done.stdout
    for name in ("SIGTERM", "SIGINT", "SIGHUP"):
        assert f"{name}: 1 with exit code 0" in done.stdout  # and what was learned is saved
