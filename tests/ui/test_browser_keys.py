"""The keyboard and the browser's tab, in a real browser: Ctrl+Enter draws, Escape cancels, the title counts."""

from collections.abc import Iterator
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui import PageConfig  # noqa: E402
from coeff_diffusion.ui.page import build, launch  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]
PATIENCE = 60_000
# Of a text on what lies behind it, as WCAG has it.
CONTRAST = """(selector) => {
  const element = document.querySelector(selector), numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  let behind = element;
  while (behind && numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
  const light = (colour) => numbers(colour).slice(0, 3).map((value) => value / 255).map(
    (value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4
  ).reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = behind ? getComputedStyle(behind).backgroundColor : "rgb(255,255,255)";
  const both = [getComputedStyle(element).color, ground];
  const [low, high] = both.map(light).sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}"""


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    blocks = build(service)
    yield launch(blocks, PageConfig(port=0), [], block=False)
    blocks.close()


def opened(browser: Any, address: str, **viewport: int) -> Any:
    page = browser.new_page(viewport={"width": 1280, "height": 900, **viewport})
    page.set_default_timeout(PATIENCE)
    page.goto(address)
    page.locator("#draw-button").wait_for()
    page.locator(".main > [data-testid=status-tracker]").wait_for(state="hidden")
    return page


def test_keys_draw_and_cancel_and_the_title_counts(browser: Any, address: str, service: StudioService) -> None:
    page = opened(browser, address)
    page.locator("#draw-prompt textarea").fill("a dog")
    page.locator("#draw-settings > button").click()
    for name, value in (("width", 64), ("height", 64), ("pictures", 4), ("steps", 100)):
        page.locator(f"#draw-{name} input[type=number]").fill(str(value))
        page.locator(f"#draw-{name} input[type=number]").press("Tab")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("document.title.includes(' % - coeff-diffusion')")
    page.keyboard.press("Escape")
    page.locator("#draw-status").get_by_text("Cancelled; nothing was saved.").wait_for()
    page.wait_for_function("document.title === 'coeff-diffusion'")
    assert not list(service.output_dir.glob("*.png"))
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_hints_and_labels_can_be_read(browser: Any, address: str, theme: str) -> None:
    page = opened(browser, f"{address}?__theme={theme}")
    for selector in ("#draw-empty", "#draw-compare [class*=info]", "#draw-prompt [data-testid=block-info]"):
        assert page.evaluate(CONTRAST, selector) >= 4.5, selector
    page.close()


def test_on_a_phone_targets_are_large_enough(browser: Any, address: str) -> None:
    page = opened(browser, address, width=390, height=844)
    for selector in ("#draw-button", "#draw-cancel", "#start-teach", "#start-open", "#draw-upload", "[role=tab]"):
        assert page.locator(selector).first.bounding_box()["height"] >= 44, selector
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
