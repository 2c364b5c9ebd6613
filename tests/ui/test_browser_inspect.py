"""The Inspect tab in a real browser: look at a subject, then at a word in a picture."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browsing import complaints
from diffusers import StableDiffusionPipeline
from subject_maker import make_subject

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion import Coefficients, CoefficientsInfo  # noqa: E402
from coeff_diffusion.inference.studio import Studio  # noqa: E402
from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.sources.library import Library  # noqa: E402
from coeff_diffusion.ui import PageConfig, inspect  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

pytestmark = pytest.mark.browser


@pytest.fixture
def address(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Iterator[str]:
    library = Library(tmp_path / "subjects")
    library.folder.mkdir()
    subject = make_subject(tiny_pipe.unet, tiny_pipe.text_encoder, "dog", "sks dog", "dog")
    subject.save(library.folder / "dog.safetensors")
    path = "mid_block.attentions.0.transformer_blocks.0.attn1"
    stranger = Coefficients({path: torch.ones(3, 3)}, info=CoefficientsInfo(trigger="sks cat"))
    stranger.save(library.folder / "cat.safetensors")
    service = StudioService(Studio(tiny_pipe), library, tmp_path / "pictures")
    with gradio.Blocks(analytics_enabled=False) as page, gradio.Tab("Inspect") as tab:
        inspect.build(service, page, tab)
    yield serve(page, PageConfig(port=0), [])
    page.close()


def choose(page: Any, name: str) -> None:
    page.get_by_label("Subject", exact=True).click()
    page.get_by_role("option", name=name, exact=True).click()


def test_inspect_a_subject_and_a_word(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems = complaints(page)
    page.goto(address)
    heat, norms = page.get_by_alt_text("Heat maps of the coefficients"), page.get_by_alt_text("Bars of the norm")
    maps, picture = page.get_by_alt_text("The word's attention maps"), page.get_by_alt_text("The picture that was")
    about, status = page.locator("#inspect-about"), page.locator("#inspect-status")
    look = page.get_by_role("button", name="Draw and look")
    prompt, word = (page.locator(f"#inspect-{name}").get_by_role("textbox") for name in ("prompt", "word"))
    look.wait_for(timeout=30_000)
    playwright.expect(heat).to_have_count(0)

    # Without a subject there is nothing to look at.
    look.click()
    playwright.expect(status.get_by_role("alert")).to_contain_text("choose a subject first", timeout=30_000)

    # Choosing one shows its charts, and puts a prompt and its words into the controls.
    choose(page, "dog")
    playwright.expect(about).to_contain_text("called up by “sks dog”", timeout=30_000)
    for chart in (heat, norms):
        playwright.expect(chart).to_be_visible()
        assert chart.evaluate("image => image.decode().then(() => image.naturalWidth)") > 800
    playwright.expect(prompt).to_have_value("sks dog")
    playwright.expect(word).to_have_value("sks dog")

    # Draw: the picture as the Draw tab would draw it, and the maps of the word.
    prompt.fill("a <b>sks dog</b> on grass")
    page.get_by_role("button", name="Settings").click()
    page.locator("#inspect-steps input[type=number]").fill("2")
    page.locator("#inspect-seed input").fill("7")
    look.click()
    playwright.expect(status).to_contain_text("The maps of “sks dog”, seed 7.", timeout=30_000)
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
    assert maps.evaluate("image => image.decode().then(() => image.naturalWidth)") > 800

    # A word that is not there is said with those that are, as text; the maps of another word do not stay.
    word.fill("cat")
    word.press("Enter")
    refused = status.get_by_role("alert")
    playwright.expect(refused).to_contain_text("'cat' is not in the prompt; its words are: a, ", timeout=30_000)
    playwright.expect(maps).to_have_count(0)
    playwright.expect(look).to_be_enabled()

    # A drawing that takes too long can be cancelled, and the next one begins.
    word.fill("sks dog")
    page.locator("#inspect-steps input[type=number]").fill("100")
    look.click()
    page.locator("#inspect-cancel").click()
    playwright.expect(status).to_contain_text("Cancelled; nothing was saved.", timeout=30_000)
    playwright.expect(page.locator("#inspect-cancel")).to_be_disabled()
    page.locator("#inspect-steps input[type=number]").fill("2")
    look.click()
    playwright.expect(status).to_contain_text("The maps of “sks dog”, seed 7.", timeout=30_000)

    # One head is switched off: both pictures beside each other, and one over the other.
    switched, pair, slider = (
        page.locator("#inspect-head-status"),
        page.locator("#inspect-pair"),
        page.locator("#inspect-slider"),
    )
    page.locator("#inspect-head input").click()
    page.get_by_role("option", name="2: ").click()
    page.get_by_role("button", name="Draw without this head").click()
    playwright.expect(switched).to_contain_text("Without it the picture changes by", timeout=30_000)
    playwright.expect(switched).to_contain_text("seed 7.")
    playwright.expect(pair.get_by_role("img")).to_have_count(2)
    assert slider.locator("img").evaluate_all("images => new Set(images.map(image => image.src)).size") == 2

    # A subject of another base is refused, and the charts of the last one go.
    choose(page, "cat")
    playwright.expect(about.get_by_role("alert")).to_contain_text("has 3 heads, in this base 8", timeout=30_000)
    playwright.expect(heat).to_have_count(0)

    page.set_viewport_size({"width": 390, "height": 800})
    choose(page, "dog")
    playwright.expect(heat).to_be_visible(timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert problems == []
    page.close()
