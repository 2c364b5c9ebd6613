"""The whole page on the embedded base: from five dropped pictures to a drawn subject, as on a newcomer's laptop."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import complaints
from training_runs import photographs

from coeff_diffusion import Coefficients
from coeff_diffusion.images.files import read_parameters

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.ui import PageConfig, open_page  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PICTURES = Path(__file__).parents[2] / "examples" / "subjects" / "cat"
PATIENCE = 120_000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    config = PageConfig(subjects_dir=str(tmp_path / "subjects"), output_dir=str(tmp_path / "pictures"), port=0)
    yield open_page(config, block=False)
    gradio.close_all()


def test_a_ready_subject_is_drawn_at_a_click(browser: Any, address: str, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#start-ready .thumbnail-item").first.click()
    page.locator("#draw-status").get_by_text("Saved in").wait_for()
    playwright.expect(page.locator("#draw-prompt textarea")).to_have_value("a sks cat in the snow")
    playwright.expect(page.locator("#draw-start")).to_be_hidden()
    (file,) = (tmp_path / "pictures").glob("*.png")
    assert read_parameters(file).subjects == {"cat": 1.0}

    page.reload()  # the browser has its result again; another one begins
    playwright.expect(page.locator("#draw-gallery img").first).to_be_visible()
    playwright.expect(page.locator("#draw-start")).to_be_hidden()
    page.close()
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.goto(address)
    page.locator("#start-teach").click()
    playwright.expect(page.get_by_role("tab", name="Train", exact=True)).to_have_attribute("aria-selected", "true")
    page.close()


def _drop(page: Any, pictures: Iterable[Path]) -> None:
    """Drop five pictures in the Train tab of a page that was just opened."""
    page.locator("#draw-button").wait_for()
    page.locator(".main > [data-testid=status-tracker]").wait_for(state="hidden")  # now it has all its values
    page.get_by_role("tab", name="Train", exact=True).click()
    page.set_input_files("#train-pictures input[type=file]", sorted(map(str, pictures)))
    playwright.expect(page.locator("#train-crops img")).to_have_count(5)


def test_from_five_pictures_to_a_drawn_subject(browser: Any, address: str, tmp_path: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    problems = complaints(page)
    page.goto(address)

    # Photographs are told before anything is trained: this base does not know such pictures.
    _drop(page, photographs(tmp_path))
    remarks = page.locator("#train-remarks")
    playwright.expect(remarks).to_contain_text("these look like photos; the embedded base knows drawn things only")
    page.reload()

    # Train, with a reload in the middle: the page comes back to where the training is.
    _drop(page, PICTURES.glob("*.png"))
    playwright.expect(remarks).to_have_text("")
    page.locator("#train-name textarea, #train-name input").fill("my cat")
    page.locator("#train-class-word textarea, #train-class-word input").fill("cat")
    page.get_by_role("button", name="More").click()
    settings = (("max-train-steps", "300", "12"), ("validation-steps", "100", "6"), ("num-validation-images", "2", "1"))
    for name, before, value in settings:
        box = page.locator(f"#train-{name} input").first
        playwright.expect(box).to_have_value(before)
        box.fill(value)
        box.press("Tab")
        playwright.expect(box).to_have_value(value)
    page.get_by_role("button", name="Start training").click()
    status = page.locator("#train-status")
    playwright.expect(status).to_contain_text("of 12")
    page.reload()
    page.get_by_role("tab", name="Train", exact=True).click()
    playwright.expect(status).to_contain_text("my-cat has learned all 12 steps and is in the library")
    for shown, number in (("own", 5), ("earlier", 2), ("previews", 1)):  # its pictures, steps 0 and 6, step 12
        playwright.expect(page.locator(f"#train-{shown} img")).to_have_count(number)
    playwright.expect(page.locator("#train-earlier")).to_contain_text("step 0")
    assert Coefficients.load(tmp_path / "subjects" / "my-cat").info.train_steps == 12

    # Draw it beside the base.
    page.locator("#train-draw").click()
    playwright.expect(page.locator("#draw-prompt textarea")).to_have_value("a sks cat")
    page.locator("#draw-compare input").check()
    page.locator("#draw-button").click()
    playwright.expect(page.locator("#draw-status")).to_contain_text("00002-")
    files = sorted((tmp_path / "pictures").glob("*.png"))
    assert [read_parameters(file).subjects for file in files] == [{}, {"my-cat": 1.0}]
    assert problems == []
    page.close()
