"""What may be installed, and what the tests run with."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}


def test_every_dependency_is_pinned_within_its_range() -> None:
    asked = [*PROJECT["dependencies"], *(one for extra in PROJECT["optional-dependencies"].values() for one in extra)]
    outside = [
        str(one)
        for one in map(Requirement, asked)
        if not one.specifier.contains(PINS.get(canonicalize_name(one.name), "none"))
    ]
    assert outside == []


def test_floors_stand_above_published_advisories() -> None:
    """The last versions that were affected by what strangers' pictures, bases and visitors of the page can reach."""
    affected = {
        "gradio": "6.21.0",  # the open redirect of file= (until 6.19), what it may be sent on to (until 6.21)
        "pillow": "12.2.0",  # PYSEC-2026-2253 to 2257
        "transformers": "5.2.0",  # CVE-2026-4372, CVE-2026-5241: a base's config runs code
        "diffusers": "0.37.1",  # CVE-2026-44513, CVE-2026-45804: a base runs code
        "accelerate": "1.14.0",  # CVE-2026-69112
        "torch": "2.5.1",  # CVE-2025-32434
    }
    asked = map(Requirement, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["ui"]])
    ranges = {canonicalize_name(one.name): one.specifier for one in asked}
    assert [name for name, version in affected.items() if ranges[name].contains(version)] == []
