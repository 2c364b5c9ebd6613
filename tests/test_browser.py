"""The page in a real browser: what a person does with it, on a tiny base."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsing import find_chromium
from diffusers import StableDiffusionPipeline
from subject_maker import make_subject

from coeff_diffusion.pictures import read_parameters
from coeff_diffusion.ui import PageConfig, open_page

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

pytestmark = pytest.mark.browser


@pytest.fixture
def subjects_dir(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    folder = tmp_path / "subjects"
    folder.mkdir()
    for name in ("dog", "cat"):
        subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, name, f"sks {name}", name)
        subject.save((folder if name == "dog" else tmp_path) / f"{name}.safetensors")
    return folder


@pytest.fixture
def address(tiny_base_dir: Path, subjects_dir: Path, tmp_path: Path) -> Iterator[str]:
    config = PageConfig(
        base=str(tiny_base_dir), subjects_dir=str(subjects_dir), output_dir=str(tmp_path / "pictures"), port=0
    )
    yield open_page(config, block=False)
    gradio.close_all()


def test_ci_insists_on_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium found: apt-get install chromium"):
        find_chromium()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no Chromium found"):
        find_chromium()


def test_draw_with_subjects(browser: object, address: str, subjects_dir: Path, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    hosts: set[str] = set()
    problems: list[str] = []
    page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "://" in request.url else ""))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.goto(address)
    draw = page.get_by_role("button", name="Draw", exact=True)
    draw.wait_for(timeout=15_000)

    # Pick a subject from the folder, add another from a file: both get a strength and show their words.
    page.get_by_label("Subjects", exact=True).click()
    page.get_by_role("option", name="dog").click()
    page.get_by_label("Strength of dog").first.wait_for()
    page.set_input_files("input[type=file]", tmp_path / "cat.safetensors")
    page.get_by_label("Strength of cat").first.wait_for()
    called = page.get_by_label("Called up by")
    playwright.expect(called).to_have_value("dog: write “sks dog”\ncat: write “sks cat”")
    page.get_by_label("Strength of dog").first.fill("0.5")

    # Draw: the base and the subjects side by side, from the seed asked for.
    page.get_by_label("Prompt", exact=True).fill("a sks dog and a <i>sks cat</i> on grass")
    page.get_by_role("button", name="More").click()
    page.get_by_label("Random seed").uncheck()
    page.get_by_label("Seed", exact=True).fill("5")
    page.get_by_label("Steps").first.fill("2")
    draw.click()
    pictures = page.get_by_role("img", name="seed 5")
    playwright.expect(pictures).to_have_count(2, timeout=30_000)
    assert pictures.first.evaluate("image => image.complete && image.naturalWidth") == 16
    saved = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in saved] == ["00001-5-base.png", "00002-5.png"]
    found = read_parameters(saved[1])
    assert found.prompt == "a sks dog and a <i>sks cat</i> on grass"
    assert (found.subjects, found.steps) == ({"dog": 0.5, "cat": 1.0}, 2)
    assert read_parameters(saved[0]).prompt == "a dog and a <i>cat</i> on grass"

    # What cannot be drawn is said where the user looks, as text and not as markup.
    (subjects_dir / "dog.safetensors").unlink()
    draw.click()
    toast = page.get_by_text("no subject 'dog' in")
    toast.wait_for(timeout=10_000)

    assert hosts <= {address.split("/")[2], ""}, "the page must not ask anyone else for anything"
    assert [problem for problem in problems if "Failed to load resource" not in problem] == []
    page.close()
