"""Who cannot see well, or has no mouse, or a phone, in a real browser; and the title, which counts."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from browsing import Requests

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui import PageConfig  # noqa: E402
from coeff_diffusion.ui.page import build  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]
PATIENCE = 60_000
TABS = ("Draw", "Explore", "Train", "Timeline", "Library", "Inspect")
SERIOUS = ("serious", "critical")
CUT_NUMBERS = """[...document.querySelectorAll("input[type=number]")].filter((one) => one.offsetParent !== null
  && getComputedStyle(one.parentElement).overflowY === "hidden"
  && one.offsetHeight > one.parentElement.clientHeight).map((one) => one.getAttribute("aria-label"))"""
"""The fields for a number, such as those of sliders, that are cut off by what holds them."""


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    blocks = build(service)
    yield serve(blocks, PageConfig(port=0), [])
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


def open_tab(page: Any, tab: str) -> None:
    """On a phone the last tabs are behind a button."""
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.is_visible():
        page.locator(".overflow-menu > button").click()
        found = page.locator(".overflow-dropdown button").filter(has_text=tab)
    found.click()


@pytest.mark.parametrize(("theme", "width", "height"), [("light", 1280, 900), ("dark", 390, 844)])
def test_every_tab_can_be_read_and_used_by_everyone(
    browser: Any, address: str, theme: str, width: int, height: int
) -> None:
    """By what axe-core finds, contrast included, with all that folds unfolded and with a picture drawn."""
    page = opened(browser, f"{address}?__theme={theme}", width=width, height=height)
    page.locator("#draw-prompt textarea").fill("a dog")
    page.keyboard.press("Enter")
    page.locator("#draw-status").get_by_text(".png").wait_for()
    found: dict[tuple[str, str], str] = {}
    requests = Requests(page)
    for tab in TABS:
        open_tab(page, tab)
        requests.settle()  # it asks for what it shows
        folded = page.locator("button.label-wrap:visible:not(.open)")
        while folded.count():
            folded.first.click()
        for cards in ("history", "library"):  # one is chosen, and under the mouse
            if page.locator(f"#{cards}-cards .thumbnail-item").first.is_visible():
                page.locator(f"#{cards}-cards .thumbnail-item").first.click()
                page.locator(f"#{cards}-facts").get_by_text("dog").first.wait_for()
        assert page.evaluate(CUT_NUMBERS) == [], tab
        page.wait_for_timeout(700)  # the script looks twice a second
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        for one in axe.Axe().run(page).response["violations"]:
            if one["impact"] in SERIOUS:
                found |= {(tab, node["html"][:200]): f"{one['id']}: {node['failureSummary']}" for node in one["nodes"]}
    assert not found
    page.close()


def test_all_of_a_drawing_by_keyboard(browser: Any, address: str) -> None:
    page = opened(browser, address)

    def tab_to(selector: str) -> None:
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"{selector} is out of reach")

    page.keyboard.type("a dog")  # the prompt has the focus
    tab_to("#draw-subject-1 input")
    page.keyboard.press("ArrowDown")
    page.get_by_role("option", name="dog", exact=True).wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#draw-subject-1 input")).to_have_value(re.compile("dog"))
    page.keyboard.press("ArrowDown")  # the list is open again, and closes as one goes on
    tab_to("#draw-strength-1 input[type=number]")
    playwright.expect(page.get_by_role("option")).to_have_count(0)
    page.keyboard.press("Control+A")
    page.keyboard.type("0.5")
    tab_to("#draw-settings > button")
    page.keyboard.press("Enter")
    tab_to("#draw-steps input[type=number]")
    page.keyboard.press("Control+A")
    page.keyboard.type("2")
    page.keyboard.press("Control+Enter")
    page.locator("#draw-status").get_by_text(".png").wait_for()

    # What is typed beyond the ends of a slider, or taken out, is put right before it is drawn; one can type on.
    for typed, drawn in (("0", "1"), ("", "1")):
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.keyboard.type(typed)
        page.keyboard.press("Control+Enter")
        playwright.expect(page.locator("#draw-steps input[type=number]")).to_have_value(drawn)
    page.locator("#draw-status").get_by_text("00003-").wait_for()
    playwright.expect(page.locator("#draw-steps input[type=number]")).to_be_focused()
    page.close()


def test_a_proxy_that_keeps_the_name_to_itself_is_named(browser: Any, address: str) -> None:
    page = browser.new_page(extra_http_headers={"X-Forwarded-Host": "inside:7860"})
    page.goto(address)
    note = page.locator("#page-proxied")
    playwright.expect(note).to_contain_text("has to send the headers Host (or X-Forwarded-Host)", timeout=PATIENCE)
    playwright.expect(note).to_contain_text(address.rstrip("/"))
    page.close()
    page = opened(browser, address)
    assert page.locator("#page-proxied").count() == 0
    page.close()


def test_on_a_phone_targets_are_large_enough(browser: Any, address: str) -> None:
    page = opened(browser, address, width=390, height=844)
    for selector in ("#draw-button", "#draw-cancel", "#start-teach", "#start-open", "#draw-upload", "[role=tab]"):
        assert page.locator(selector).first.bounding_box()["height"] >= 44, selector
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.close()
