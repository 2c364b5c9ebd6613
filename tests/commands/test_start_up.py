"""What a command imports before it does something: `--help` answers at once, a look at a file needs no diffusers."""

import subprocess
import sys

import pytest

from coeff_diffusion.base import ready_cards
from coeff_diffusion.cli import COMMANDS

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "gradio", "huggingface_hub", "ray")
RUN = """
import sys
from coeff_diffusion.cli import main
try:
    code = main(sys.argv[2:])
except SystemExit as ended:
    code = ended.code
print("imported:", *(name for name in sys.argv[1].split(",") if name in sys.modules))
sys.exit(code)
"""


def imported(*arguments: str) -> set[str]:
    """The heavy libraries that a command has imported when it ends, in a process of its own."""
    command = [sys.executable, "-c", RUN, ",".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(done.stdout.rpartition("imported:")[2].split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_library(command: str) -> None:
    assert imported(command, "--help") == set()


def test_info_needs_no_diffusers() -> None:
    assert imported("info", str(ready_cards()[0])) == {"torch", "huggingface_hub"}
