"""The tests of diffusers itself, run with coefficients attached to every UNet that they make.

    python tools/peer_suites.py path/to/diffusers             # UNet, Stable Diffusion, XL and LoRA: about an hour
    python tools/peer_suites.py path/to/diffusers unet lora   # some of them

The folder is a checkout of diffusers at the version that is installed, or near it; of the checkout only the tests are
used (they want `pip install parameterized requests-mock scipy` beside what the project's tests need). Each suite runs
three times: without coefficients, with zero ones, which must make no difference, not even in the numbers that a failure
tells of, and with random ones (`peer_plugin.py`). What ends otherwise than without is printed, and the exit code is 1
where zero ones make a difference. The known differences stand in docs/reliability.md.

The Hub is not asked, so tests that want a published checkpoint fail alike three times; two tiny text models are stood
in for. Tests that want a GPU are skipped alike.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

TOOLS = Path(__file__).resolve().parent
MODES = ("without", "zero", "random")
SUITES = {
    "unet": ["tests/models/unets/test_models_unet_2d_condition.py"],
    "pipeline": ["tests/pipelines/stable_diffusion/test_stable_diffusion.py"],
    "xl": ["tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl.py"],
    "lora": ["tests/lora/test_lora_layers_sd.py", "tests/lora/test_lora_layers_sdxl.py"],
}
PATIENCE = 600  # seconds for one test
PLACES = re.compile(r"0x[0-9a-f]{6,}|/tmp/\S+")  # in messages, other ones in each run
BROKEN = 2  # from here on pytest's exit codes say that the tests did not run to their end


class SuiteError(RuntimeError):
    """The tests cannot be run."""


@dataclass(frozen=True)
class Outcome:
    """How a test ended: passed, failed or skipped, and what it said."""

    kind: str
    message: str = ""


Outcomes = Mapping[str, Outcome]


def run(checkout: Path, files: Sequence[str], mode: str) -> dict[str, Outcome]:
    """Run tests of a checkout; returns how each ended, by its name.

    Args:
        files: below the checkout.
        mode: of `MODES`.

    Raises:
        SuiteError: there is no such file, or pytest did not get to the end.
    """
    if missing := [file for file in files if not (checkout / file).is_file()]:
        raise SuiteError(f"{checkout} has no {missing[0]}; give the folder of a checkout of diffusers")
    paths = [str(TOOLS), str(TOOLS.parent), os.environ.get("PYTHONPATH", "")]
    own = {"COEFF_PEERS": mode, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment = {"OMP_NUM_THREADS": "1", **os.environ, **own}  # networks this small only lose time to more threads
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-p", "peer_plugin", "-p", "no:cacheprovider", f"--timeout={PATIENCE}", f"--junitxml={report}"]
        command = [sys.executable, "-m", "pytest", *options, *files]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        if done.returncode >= BROKEN or not report.is_file():
            said = (done.stdout + done.stderr).strip().splitlines()
            raise SuiteError("\n".join(["the tests did not run to their end:", *said[-20:]]))
        return outcomes(report)


def outcomes(report: Path) -> dict[str, Outcome]:
    """How each test of a report of pytest (`--junitxml`) ended, by its name."""
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kind, message = "passed", ""
        for part in case:
            if part.tag in ("failure", "error", "skipped"):
                kind = "skipped" if part.tag == "skipped" else "failed"
                message = PLACES.sub("...", " ".join((part.get("message") or "").split()))[:300]
        classname = case.get("classname", "").rpartition(".")[2]
        found[f"{classname}::{case.get('name')}"] = Outcome(kind, message)
    return found


def differences(base: Outcomes, other: Outcomes, words: bool = False) -> dict[str, tuple[Outcome, Outcome]]:
    """Tests that end otherwise, by name: how in `base`, and how in `other`.

    Args:
        words: a failure with another message is another end.
    """
    nothing = Outcome("missing")
    names = [*base, *(name for name in other if name not in base)]
    pairs = {name: (base.get(name, nothing), other.get(name, nothing)) for name in names}
    return {
        name: (before, after)
        for name, (before, after) in pairs.items()
        if before.kind != after.kind or (words and before != after)
    }


def summary(found: Outcomes) -> str:
    """How many tests ended how."""
    counted = Counter(outcome.kind for outcome in found.values())
    return ", ".join(f"{counted[kind]} {kind}" for kind in ("passed", "failed", "skipped"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suites, print the differences, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("suites", nargs="*", metavar="suite", help=f"of {', '.join(SUITES)}; all of them if left out")
    args = parser.parse_args(arguments)
    if unknown := [suite for suite in args.suites if suite not in SUITES]:
        parser.error(f"there is no suite {unknown[0]!r}; there are {', '.join(SUITES)}")
    wrong = 0
    try:
        for suite in args.suites or SUITES:
            found = {}
            for mode in MODES:
                found[mode] = run(args.checkout, SUITES[suite], mode)
                print(f"{suite}, {mode}: {summary(found[mode])}", flush=True)
            for mode in MODES[1:]:
                for name, (before, after) in differences(found["without"], found[mode], mode == "zero").items():
                    wrong += mode == "zero"
                    print(f"  {mode}: {name} {before.kind} -> {after.kind}: {after.message or before.message}")
    except SuiteError as error:
        print(f"peer_suites: {error}", file=sys.stderr)
        return 2
    print("zero coefficients make no difference" if not wrong else f"zero coefficients make {wrong} differences")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
