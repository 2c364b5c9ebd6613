"""The Explore tab in a real browser: a grid of 2 x 3 from the first click to the files, training steps, and cancel."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import complaints
from diffusers import StableDiffusionPipeline
from PIL import Image

from coeff_diffusion import Coefficients
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.library import Library
from coeff_diffusion.training.timeline import save_timeline

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui import PageConfig, explore  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture
def service(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> StudioService:
    folder = tmp_path / "subjects"
    (folder / "run").mkdir(parents=True)
    for number, name in enumerate(("dog", "other-dog", "run/coefficients")):
        new_subject(name, vectors=1, class_word="dog", seed=number).save(folder / f"{name}.safetensors")
    steps = {step: new_subject("run", vectors=1, class_word="dog", seed=step) for step in range(2, 14, 2)}
    save_timeline(folder / "run" / "timeline.safetensors", steps)
    return StudioService(Studio(tiny_pipe), Library(folder), tmp_path / "pictures")


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    with gradio.Blocks() as page, gradio.Tab("Explore") as tab:
        explore.build(service, page, tab)
    page.css = explore.CSS
    page.queue(default_concurrency_limit=1)
    yield serve(page, PageConfig(port=0), [])
    page.close()


def choose(page: Any, label: str, *options: str) -> None:
    """Pick from a dropdown of several."""
    for option in options:
        page.get_by_label(label, exact=True).click()
        page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Escape")


def test_explore(browser: Any, address: str, service: StudioService, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(60_000)
    problems = complaints(page)
    page.goto(address)
    draw, cancel = page.locator("#explore-button"), page.locator("#explore-cancel")
    draw.wait_for()
    status = page.locator("#explore-status")

    # Nothing chosen, and strengths that are none: each is said where the user looks, as text.
    draw.click()
    playwright.expect(status).to_contain_text("there is no subject; give at least one; there is no prompt")
    page.locator("#explore-strengths textarea").fill("0; <i>1</i>")
    draw.click()
    playwright.expect(status).to_contain_text("the strengths are '0; <i>1</i>', expected numbers and commas")

    # A prompt to begin with comes with the first subject. Two of one trigger against two strengths and the base: 2 x 3.
    choose(page, "Subjects", "dog", "other-dog")
    page.locator("#explore-strengths textarea").fill("0.5, 1")
    prompt = page.locator("#explore-prompt textarea")
    playwright.expect(prompt).to_have_value("a sks dog")
    prompt.fill("a sks dog on snow")
    draw.click()
    playwright.expect(status).to_contain_text("5 of 5 pictures, saved in")
    cells = page.locator("#explore-cells")
    for words in ("base: a dog on snow", "dog at 0.5", "other-dog at 1"):
        playwright.expect(cells.get_by_text(words, exact=True)).to_be_visible()
    files = sorted(service.output_dir.iterdir())
    assert [file.name for file in files] == [*(f"{n:05d}-0-cell.png" for n in range(1, 6)), "00006-0-grid.png"]
    found = read_parameters(files[4])
    assert (found.prompt, found.seed, found.subjects) == ("a sks dog on snow", 0, {"other-dog": 1.0})

    # What it was drawn with is known: a grid that the controls no longer ask for is dimmed and says so.
    outdated, shown = page.locator("#explore-outdated"), page.locator("#explore-sheet img")
    dimmed = "This grid was drawn with other settings; draw it again."
    prompt.press_sequentially(" and ice")
    playwright.expect(outdated).to_have_text(dimmed)
    playwright.expect(shown).to_have_css("opacity", "0.35")
    playwright.expect(status).to_contain_text("5 of 5 pictures, saved in")
    prompt.fill("a sks dog on snow")
    playwright.expect(outdated).to_have_text("")
    playwright.expect(shown).to_have_css("opacity", "1")
    for control, other, same in (("strengths textarea", "0.5; 1", "0.5, 1"), ("seed input[type=number]", "7", "0")):
        if control.startswith("seed"):
            page.get_by_role("button", name="Settings").click()
        page.locator(f"#explore-{control}").fill(other)
        playwright.expect(outdated).to_have_text(dimmed)
        page.locator(f"#explore-{control}").fill(same)
        playwright.expect(outdated).to_have_text("")
    page.get_by_role("button", name="Settings").click()

    # The whole is one picture to download, which says what it is; each cell opens alone.
    with page.expect_download() as download:
        page.locator("#explore-sheet").get_by_label("Download").click()
    download.value.save_as(tmp_path / "downloaded.png")
    assert read_parameters(tmp_path / "downloaded.png").extra["X Values"] == "base, 0.5, 1"
    with Image.open(tmp_path / "downloaded.png") as sheet, Image.open(files[5]) as saved:
        assert sheet.tobytes() == saved.tobytes()
    cells.get_by_role("button").filter(has_text="other-dog at 1").click()
    alone = cells.get_by_test_id("detailed-image")
    playwright.expect(alone).to_be_visible()
    assert alone.evaluate("image => image.naturalWidth") == 16

    # Training steps: only the controls of this kind, four steps chosen already; cancelled on the way.
    page.get_by_label("Training steps × strengths").check()
    playwright.expect(page.get_by_label("Subjects", exact=True)).to_have_count(0)
    page.get_by_label("Subject", exact=True).click()
    page.get_by_role("option", name="run", exact=True).click()
    steps = page.locator("#explore-steps")
    for step in ("2", "6", "8", "12"):
        playwright.expect(steps.get_by_text(step, exact=True)).to_be_visible()
    page.get_by_role("button", name="Settings").click()
    page.locator("#explore-denoising input[type=number]").fill("100")
    draw.click()
    playwright.expect(outdated).to_have_text(dimmed)
    playwright.expect(status).to_contain_text("left")
    playwright.expect(outdated).to_have_text("")
    cancel.click()
    playwright.expect(status).to_contain_text("Cancelled")
    playwright.expect(draw).to_be_enabled()

    # On a phone nothing is wider than the screen.
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []
    page.close()
