"""The browser tells of long work that ends unseen, once it was asked to. The page around it is as small as can be."""

from typing import Any

import pytest

pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

from coeff_diffusion.ui.notify import AT_WORK, LABEL, SCRIPT

pytestmark = pytest.mark.browser
PAGE = f"""<div id="draw-status"></div><div id="train-status"></div>{SCRIPT}"""
RECORD = """window.told = []; window.asked = 0; window.unseen = true;
class Told { constructor(title, { body }) { told.push(body); } }
Told.permission = "default";
Told.requestPermission = async () => { asked += 1; return Told.permission = "granted"; };
window.Notification = Told;
Object.defineProperty(document, "hidden", { get: () => window.unseen });
Object.defineProperty(window, "isSecureContext", { value: true });"""


def test_what_ends_unseen_is_told(browser: Any) -> None:
    page = browser.new_page()
    page.route("**/*", lambda route: route.fulfill(body=PAGE, content_type="text/html"))
    page.add_init_script(RECORD)
    page.clock.install()
    page.goto("http://127.0.0.1/")

    def work(line: str, mark: str, seconds: int, words: str) -> list[str]:
        page.evaluate("([line, mark]) => { document.getElementById(line).innerHTML = mark; }", [line, mark])
        page.clock.run_for(1000 * seconds)
        page.evaluate("([line, words]) => { document.getElementById(line).innerHTML = words; }", [line, words])
        page.clock.run_for(1000)
        found: list[str] = page.evaluate("told.splice(0)")
        return found

    bar, saved = '<progress value="1" max="2"></progress>', "<p>Saved in <b>pictures</b></p>"
    assert work("draw-status", bar, 20, saved) == []
    assert page.evaluate("asked") == 0  # nothing is asked for by itself
    assert page.evaluate("coeffDiffusionTell.press()").startswith("You will be told")
    assert work("draw-status", bar, 20, saved) == ["Saved in pictures"]
    assert work("draw-status", bar, 5, saved) == []
    assert work("train-status", f"<p>step 1</p>{AT_WORK}", 20, "rex is there") == ["rex is there"]
    page.evaluate("window.unseen = false")
    assert work("draw-status", bar, 20, saved) == []
    assert page.evaluate("coeffDiffusionTell.press()") == LABEL
    page.evaluate("window.unseen = true")
    assert work("draw-status", bar, 20, saved) == []
    page.close()
