"""The extension in Forge's own UNet, patcher and text engine. FORGE_PATH names a checkout:

FORGE_PATH=/path/to/stable-diffusion-webui-forge python -m pytest tests/integrations
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = os.environ.get("FORGE_PATH", "")
ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent


@pytest.mark.skipif(not CHECKOUT, reason="FORGE_PATH names no checkout of Forge")
def test_forge_itself() -> None:
    folders = (ROOT, ROOT / "tests", ROOT / "integrations" / "forge")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    command = [sys.executable, str(HERE / "real_forge.py"), CHECKOUT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["layers"] == 14
    assert found["reads_learned"]
    assert found["places"] == [[4, 5], [], [1, 2]]
    assert found["lengths"] == [77, 77, 154]
    # Three negative prompts, then three prompts; in the middle one the base acts alone.
    acts = [change > 1e-3 for change in found["changes"]]
    assert acts == [True, False, True] * 2
    assert found["changes"][1] == found["changes"][4] == 0
    assert found["left"] == []
