import importlib
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion import Coefficients
from coeff_diffusion.cli import COMMANDS, UsageError, main, parse
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.sources.library import Library

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dog(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    """A subject's file."""
    path = tmp_path / "dog.safetensors"
    make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "my dog", "sks dog", "dog").save(path)
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the folder they run in."""
    monkeypatch.chdir(tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command, in this process: a new one would import torch again."""
    capsys.readouterr()  # what the fixtures wrote
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The message of a command that fails as it should: exit code 2, one line on stderr, no traceback."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    (line,) = err.strip().splitlines()
    assert line.startswith("coeff-diffusion: error: ")
    return line.removeprefix("coeff-diffusion: error: ")


def test_generate_writes_pictures_that_remember(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    flags = ["--base", tiny_base_dir, "--subject", f"{dog}:0.8", "--num_inference_steps", 2, "--seed", 5]
    out_dir = tmp_path / "out"
    code, out, _ = run(
        capsys, "generate", *flags, "--prompt", "a sks dog on grass", "--scheduler", "euler a", "--output_dir", out_dir
    )
    assert code == 0
    assert "strength 0.8, called up by 'sks dog'" in out
    (file,) = out_dir.iterdir()
    assert file.name == "00001-5.png"
    assert str(file) in out
    found = read_parameters(file)
    assert (found.prompt, found.seed, found.steps, found.scheduler) == ("a sks dog on grass", 5, 2, "Euler a")
    assert list(found.subjects.values()) == [0.8]

    code, out, _ = run(capsys, "info", file)
    assert code == 0
    assert "a sks dog on grass" in out


def test_generate_grid_shows_the_base_beside_the_subject(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    flags = ["--pretrained_model_name_or_path", tiny_base_dir, f"--subject={dog}", "--num_inference_steps=1"]
    prompts = ["--prompt", "a sks dog", "--prompt", "a cat, [red]: blue"]
    code, out, _ = run(
        capsys, "generate", *flags, *prompts, "--grid", "--batch_size", 2, "--output_dir", tmp_path / "out"
    )
    assert code == 0
    assert "note: the prompt does not contain 'sks dog'" in out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 2 * (2 + 2) + 1
    assert names[-1] == "00009-grid.png"
    seeds = {name.split("-")[1].removesuffix(".png") for name in names[:-1]}
    assert len(seeds) == 2  # the random seed is drawn once and counts up within each prompt
    with Image.open(tmp_path / "out" / "00009-grid.png") as grid:
        assert grid.width > 4 * 16
        assert grid.height > 2 * 16


def test_nothing_is_overwritten(capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, tmp_path: Path) -> None:
    for _ in range(2):
        flags = ["--base", tiny_base_dir, "--num_inference_steps", 1, "--seed", 1, "--output_dir", tmp_path / "out"]
        assert run(capsys, "generate", "--prompt", "x", *flags)[0] == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00001-1.png", "00002-1.png"]


def test_info_about_a_subject(capsys: pytest.CaptureFixture[str], dog: Path) -> None:
    code, out, _ = run(capsys, "info", dog)
    assert code == 0
    facts = dict(line.split(maxsplit=1) for line in out.partition("\n\n")[0].splitlines())
    assert facts["subject"] == "my dog"
    assert facts["trigger"] == "sks dog"
    assert facts["layers"] == "14 (7 self, 7 cross)"
    for arguments in (["info", "--json", dog], ["info", dog, "--json"]):
        code, out, _ = run(capsys, *arguments)
        assert (code, json.loads(out)["info"]["name"]) == (0, "my dog")


def test_a_subject_is_checked_converted_and_blended(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    code, out, _ = run(capsys, "verify", dog, "--base", tiny_base_dir)
    assert (code, out.count("\n")) == (0, 1)
    assert f"{dog} (14 layers, a token of 32 channels) fits {tiny_base_dir}" in out
    assert "this base is custom with 20 layers" in refused(capsys, "verify", dog, "--base", "embedded")

    assert run(capsys, "convert", dog, "-o", "half.safetensors", "--dtype", "float16")[0] == 0
    assert "half.safetensors exists" in refused(capsys, "convert", dog, "-ohalf.safetensors", "--dtype", "bfloat16")
    assert run(capsys, "convert", dog, "-o", "half.safetensors", "--dtype", "bfloat16", "--overwrite")[0] == 0

    code, out, _ = run(capsys, "blend", f"{dog}:0.7", "half.safetensors:0.3", "-o", "mix.safetensors")
    assert code == 0
    assert "'0.7 my dog + 0.3 my dog'" in out
    assert run(capsys, "verify", "mix.safetensors", "--base", tiny_base_dir)[0] == 0


@pytest.mark.filterwarnings("default")
def test_another_base_of_the_same_kind_is_said_once(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    subject = Coefficients.load(dog)
    info = replace(subject.info, base_model="user/tiny", base_sample=(9.0,) * 24)
    subject.replace(info=info).save(tmp_path / "tuned.safetensors")
    flags = ["--base", tiny_base_dir, "--num_inference_steps", 2, "--prompt", "a sks dog", "--prompt", "sks dog"]
    for _ in range(2):  # once in each run, however many pictures it draws
        code, _, err = run(capsys, "generate", "--subject", "tuned.safetensors", *flags)
        assert code == 0
        (line,) = [line for line in err.splitlines() if "warning" in line]
        assert line == (
            "coeff-diffusion: warning: the subject was trained on user/tiny, which is of the same kind as this base "
            "but has other weights; it may look different here"
        )
    code, _, err = run(capsys, "generate", "--subject", dog, *flags)
    assert (code, "the subject was trained on" in err) == (0, False)


def test_errors_about_strangers_files_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "info", "\x1b[2J\u202ea\x7f.safetensors")
    assert message == r"there is no file \x1b[2J\u202ea\x7f.safetensors"


def test_errors_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    base = ["--base", tiny_base_dir]
    assert f"no command 'draw'; use one of {', '.join(COMMANDS)}" in refused(capsys, "draw")
    assert "give a --prompt" in refused(capsys, "generate")
    assert "--seed is 'x', expected int" in refused(capsys, "generate", "--prompt", "a", "--seed", "x")
    assert "--gate is 'open', expected one of 'trigger', 'always'" in refused(capsys, "generate", "--gate", "open")
    assert "--seed is '1.5', expected int" in refused(capsys, "generate", "--seed=1.5")
    assert "--guidance_scale is 'high', expected float" in refused(capsys, "generate", "--guidance_scale", "high")
    assert "unrecognized arguments: --nope" in refused(capsys, "generate", "--prompt", "a", "--nope")
    assert "no such file or folder: './none'" in refused(capsys, "generate", "--prompt", "a", "--base", "./none")
    assert "no scheduler 'Oiler'" in refused(capsys, "generate", "--prompt", "a", *base, "--scheduler", "Oiler")
    assert "steps is 0" in refused(capsys, "generate", "--prompt", "a", *base, "--num_inference_steps", 0)
    assert "none.safetensors" in refused(capsys, "generate", "--prompt", "a", *base, "--subject", "./none.safetensors")
    assert "nan, expected a finite number" in refused(capsys, "generate", "--prompt", "a", "--subject", f"{dog}:nan")
    assert "FILE is missing (coeff-diffusion info --help lists the options)" in refused(capsys, "info")
    assert "--output is missing" in refused(capsys, "convert", dog)
    assert "--dtype is 'int4', expected one of 'auto', 'float32', 'float16', 'bfloat16', 'int8'" in refused(
        capsys, "convert", dog, "-o", "x.safetensors", "--dtype", "int4"
    )
    assert "none.png" in refused(capsys, "info", tmp_path / "none.png")
    assert "is an empty file; expected a .safetensors checkpoint" in refused(
        capsys, "generate", "--prompt", "a", "--base", _touched(tmp_path / "x.ckpt")
    )
    blocked = _touched(tmp_path / "file") / "pictures"
    assert f"cannot be written to {blocked}: Not a directory" in refused(
        capsys, "generate", "--prompt", "a", *base, "--output_dir", blocked
    )


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "generate", "--debug", "--prompt", "a", "--base", "./none")
    assert code == 2
    assert "Traceback" in err


def test_train_forwards_its_flags(capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    flags = ["--base", tiny_base_dir, "--class_word", "dog", "--output_dir", tmp_path / "run"]
    message = refused(capsys, "train", *flags, "--instance_data_dir", tmp_path / "empty")
    assert "no pictures in" in message
    assert "--max_train_steps is -1" in refused(capsys, "train", "--max_train_steps", -1)
    assert "did you mean 'class_word'" in refused(capsys, "train", "--class_wrd", "dog")


def test_page_flags_that_would_open_it_to_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--share lets others draw on this machine; add --auth" in refused(capsys, "studio", "--share")
    assert "--listen lets others draw" in refused(capsys, "studio", "--listen")
    message = refused(capsys, "studio", "--listen", "--auth", "secretpassword")
    assert "--auth wants user:password" in message
    assert "secret" not in message


def test_ctrl_c_is_no_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coeff_diffusion.commands.info.show_info", interrupted)
    code, _, err = run(capsys, "info", "x")
    assert (code, err) == (130, "coeff-diffusion: stopped\n")


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"\n  {command} " in out for command in COMMANDS)
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "--guidance_scale" in out
    assert "Denoising steps" in out
    # Answering --help must not wait for torch.
    code = "import sys; from coeff_diffusion.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_command_is_documented_with_flags_that_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        examples = re.findall(rf"\$ coeff-diffusion {command} (.*)", text)
        assert examples, command
        with pytest.raises(SystemExit):
            main([command, "--help"])
        assert set(re.findall(r"--\w+", " ".join(examples))) <= set(re.findall(r"--\w+", capsys.readouterr().out))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert "usage: " in capsys.readouterr().out


@dataclass
class _Config:
    """Do something, in more words than
    fit into one line.

    And more."""

    file: str = field(metadata={"positional": True})
    """The file."""
    more: list[str] = field(metadata={"positional": True})
    """More of them."""
    output: str = field(metadata={"short": "-o"})
    """Where it goes."""
    kind: Literal["a", "b"] = "a"
    """Which kind."""
    from_picture: int | None = field(default=None, metadata={"flag": "--from"})
    """A word of Python's own."""
    json: bool = False
    """Alone it means yes."""
    prompt: list[str] = field(default_factory=list)
    """Repeat it."""


def test_a_dataclass_is_a_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("do", _Config, ["a", "b", "c", "-o", "d"]) == _Config("a", ["b", "c"], "d")
    for line in (
        "--json a b -od --from 3 --prompt x --prompt=y",
        "a b --output=d --json --from=3 --prompt x --prompt y",
    ):
        assert parse("do", _Config, line.split()) == _Config("a", ["b"], "d", "a", 3, True, ["x", "y"])
    assert parse("do", _Config, ["a", "b", "-o", "d", "--json", "--no_json"]).json is False
    for line, message in {
        "a b": "--output is missing (coeff-diffusion do --help lists the options)",
        "-o d": "FILE and MORE are missing",
        "a -o d": "MORE is missing",
        "a b -o d --from x": "--from is 'x', expected int",
        "a b -o d --kind c": "--kind is 'c', expected one of 'a', 'b'",
        "a b -o d --from_picture 1": "unrecognized arguments: --from_picture",
        "a b -o": "-o/--output: expected one argument",
    }.items():
        with pytest.raises(UsageError, match=re.escape(message)):
            parse("do", _Config, line.split())
    with pytest.raises(SystemExit):
        parse("do", _Config, ["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "Do something, in more words than fit into one line. And more.",
        "FILE MORE [MORE ...]",
        "-o OUTPUT, --output OUTPUT",
        "More of them.",
    ):
        assert text in out


def test_demo(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way `make demo` goes, on a quick base: from the example's pictures to the line that opens the page."""
    monkeypatch.setattr("coeff_diffusion.families.load.embedded_path", lambda: tiny_base_dir)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--max_train_steps", "2"])
    monkeypatch.syspath_prepend(ROOT / "examples")
    demo = importlib.import_module("demo")
    (tmp_path / "outputs" / "cat").mkdir(parents=True)  # an earlier demo stays as it is
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert "outputs/cat-2/coefficients.safetensors" in out
    assert "coeff-diffusion studio --subjects_dir outputs" in out
    (grid,) = (tmp_path / "outputs" / "cat-2" / "pictures").glob("*-grid.png")
    assert str(grid.relative_to(tmp_path)) in out
    assert list(Library("outputs").find()) == ["cat-2"]
    monkeypatch.setattr(sys, "argv", ["demo.py", "--subject", "unicorn"])
    with pytest.raises(SystemExit, match="no example subject 'unicorn'; there is cat, dog"):
        demo.main()


def _touched(path: Path) -> Path:
    path.touch()
    return path
