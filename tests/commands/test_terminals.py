"""Terminals that lack most letters, and names that are in no encoding: every command still says what it has to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from subject_maker import of_stable_diffusion

from coeff_diffusion.cli import parse
from coeff_diffusion.commands.generate_config import GenerateConfig
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.config import parse_train_config

PROMPT = "a sks 🐶 dog, Möpp, 狗"
NAME = "run_12:30 [x] caf\udce9"  # its last byte is that of Latin-1
SCRIPT = "import json, sys; from coeff_diffusion.cli import main; print([main(a) for a in json.loads(sys.argv[1])])"


def test_nothing_aborts_for_a_letter_that_the_terminal_lacks(tiny_base_dir: Path, tmp_path: Path) -> None:
    of_stable_diffusion(name=f"{PROMPT}:1", trigger="sks 🐶 dog").save(tmp_path / NAME)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    draw = ["generate", "--prompt", PROMPT, "--base", str(tiny_base_dir), "--num_inference_steps", "1", "--seed", "1"]
    commands = [
        [*draw, "--output_dir", f"out {NAME}"],
        ["info", f"out {NAME}/00001-1.png"],
        ["info", NAME],
        ["info", NAME, "--json"],
        ["card", NAME, "a.png", "-o", f"{NAME}.png"],
        ["info", f"{NAME}.png"],
        ["blend", f"{NAME}:0.5", f"{NAME}.png:0.5", "-o", f"{NAME}.safetensors"],
        ["info", f"no {NAME}"],
        ["generate", "--prompt", "caf\udce9", "--base", str(tiny_base_dir)],
        ["info", PROMPT],
    ]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    asked = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(asked, cwd=tmp_path, env=environment, capture_output=True, timeout=120, check=False)
    out, err = done.stdout.decode("cp1252"), done.stderr.decode("cp1252")
    assert out.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 0, 2, 2, 2]", err
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 3
    assert errors[0].endswith(r"there is no file no run_12:30 [x] caf\udce9")
    assert "expected text in UTF-8" in errors[1]
    assert r"a sks \U0001f436 dog" in out
    assert "Möpp" in out  # these it has
    said = next(json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert said["info"]["trigger"] == "sks 🐶 dog"
    picture = tmp_path / f"out {NAME}" / "00001-1.png"
    assert read_parameters(picture).prompt == PROMPT  # in the file it stands whole
    assert list(Library(tmp_path).find()) == [r"run_12:30 [x] caf\udce9"]


def test_a_library_lists_names_that_cannot_be_written(tmp_path: Path) -> None:
    """A page, a script and a terminal have to be able to say them, and tell one from another."""
    library = Library(tmp_path)
    for name in ("caf\udce9", r"caf\udce9", "gpj\u202eexe", "a\nb", "plain"):
        of_stable_diffusion(name="x").save(tmp_path / f"{name}.safetensors")
    found = library.find()
    assert list(found) == [r"a\nb", r"caf\udce9", r"caf\udce9_", r"gpj\u202eexe", "plain"]
    for name, path in found.items():
        assert name.encode().decode() == name
        assert library.path(name) == path
    assert library.rename(r"caf\udce9", "café") == "café"
    library.delete(r"gpj\u202eexe")
    assert [one.name for one in library.deleted()] == [r"gpj\u202eexe"]
    assert library.put_back(library.deleted()[0].key) == r"gpj\u202eexe"


@pytest.mark.parametrize(
    "text", ["null", "~", "# x", "12:30:45", "1e3", "true", "[x]", "{a: b}", "🐶", "caf\udce9", "@f", ""]
)
def test_a_text_is_what_was_typed(text: str) -> None:
    """Flags are read by a library that knows YAML; names and prompts are no YAML."""
    flags = ("base", "prompt", "subject", "output_dir", "negative_prompt", "scheduler")
    found = parse("generate", GenerateConfig, [f"--{flag}={text}" for flag in flags])
    assert (found.base, found.prompt, found.subject, found.output_dir) == (text, [text], [text], text)
    assert found.settings == {"negative_prompt": text, "scheduler": text}


def test_a_folder_may_be_called_as_a_list_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("[x]").mkdir()
    for flags in (["--instance_data_dir", "[x]"], ["--instance_data_dir=[x]"]):
        assert parse_train_config(flags).instance_data_dir == "./[x]"
    assert parse_train_config(["--instance_data_dir", "[a.png, b.png]"]).instance_data_dir == ["a.png", "b.png"]
