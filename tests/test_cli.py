import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion.cli import main
from coeff_diffusion.library import Library
from coeff_diffusion.pictures import read_parameters

ROOT = Path(__file__).parents[1]


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
    assert (found.prompt, found.seed, found.steps, found.sampler) == ("a sks dog on grass", 5, 2, "Euler a")
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
    facts = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert facts["subject"] == "my dog"
    assert facts["trigger"] == "sks dog"
    assert "14 (" in facts["layers"]


def test_errors_are_one_clear_line(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, dog: Path, tmp_path: Path
) -> None:
    base = ["--base", tiny_base_dir]
    assert "no command 'draw'; use one of train, generate, studio, info" in refused(capsys, "draw")
    assert "give a --prompt" in refused(capsys, "generate")
    assert "--seed is 'x', expected int" in refused(capsys, "generate", "--prompt", "a", "--seed", "x")
    assert "unrecognized arguments: --nope" in refused(capsys, "generate", "--prompt", "a", "--nope")
    assert "no such file or folder: './none'" in refused(capsys, "generate", "--prompt", "a", "--base", "./none")
    assert "no scheduler 'Oiler'" in refused(capsys, "generate", "--prompt", "a", *base, "--scheduler", "Oiler")
    assert "steps is 0" in refused(capsys, "generate", "--prompt", "a", *base, "--num_inference_steps", 0)
    assert "none.safetensors" in refused(capsys, "generate", "--prompt", "a", *base, "--subject", "./none.safetensors")
    assert "nan, expected a finite number" in refused(capsys, "generate", "--prompt", "a", "--subject", f"{dog}:nan")
    assert "info wants one file" in refused(capsys, "info")
    assert "none.png" in refused(capsys, "info", tmp_path / "none.png")
    assert "is a pickled" in refused(capsys, "generate", "--prompt", "a", "--base", _touched(tmp_path / "x.ckpt"))
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
    def interrupted(path: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("coeff_diffusion.info.describe", interrupted)
    code, _, err = run(capsys, "info", "x")
    assert (code, err) == (130, "coeff-diffusion: stopped\n")


def test_help_is_quick_and_complete(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command in out for command in ("train", "generate", "studio", "info"))
    with pytest.raises(SystemExit) as done:
        main(["generate", "--help"])
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "--guidance_scale" in out
    assert "Denoising steps." in out
    # Answering --help must not wait for torch.
    code = "import sys; from coeff_diffusion.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_demo(
    capsys: pytest.CaptureFixture[str], tiny_base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way `make demo` goes, on a quick base: from the example's pictures to the line that opens the page."""
    monkeypatch.setattr("coeff_diffusion.pipeline.embedded_path", lambda: tiny_base_dir)
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
