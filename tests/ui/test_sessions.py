"""A login ends: after its time for whoever looks it up, and in the page for the browser that has its cookie."""

import urllib.parse
import urllib.request
from http.cookiejar import CookieJar
from typing import Any
from urllib.error import HTTPError

import pytest

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.ui import PageConfig, PageError  # noqa: E402
from coeff_diffusion.ui.config import check  # noqa: E402
from coeff_diffusion.ui.server import blocks, serve  # noqa: E402
from coeff_diffusion.ui.sessions import CSS, SCRIPT, Sessions  # noqa: E402


def test_a_login_lasts_so_long() -> None:
    now = 0.0
    sessions = Sessions(10, clock=lambda: now)
    sessions["a"], now = "ann", 6.0
    sessions["b"] = "bob"
    assert sessions.get("a") == "ann"
    now = 10.0
    assert "a" not in sessions
    assert sessions.get("a") is None
    assert dict(sessions) == {"b": "bob"}
    del sessions["b"]
    assert not sessions


def test_the_page_asks_again_when_a_login_has_ended() -> None:
    with blocks() as page:
        pass
    address = serve(page, PageConfig(port=0, session_hours=2), [("ann", "secret")])
    sessions, now = page.app.tokens, 0.0
    assert sessions.seconds == 7200
    sessions.clock = lambda: now
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def answer() -> int:
        try:
            return int(browser.open(f"{address}gradio_api/info", timeout=30).status)
        except HTTPError as error:
            with error:
                return error.code

    try:
        assert answer() == 401
        words = urllib.parse.urlencode({"username": "ann", "password": "secret"}).encode()
        browser.open(f"{address}login", words, timeout=30).close()
        assert answer() == 200
        now = 7199.0
        assert answer() == 200
        now = 7200.0
        assert answer() == 401
    finally:
        page.close()


@pytest.mark.browser
def test_an_open_page_says_that_its_login_has_ended(browser: Any) -> None:
    with blocks() as page:
        button, text = gradio.Button("Count"), gradio.Textbox("0", label="Count of presses")
        button.click(lambda count: str(int(count) + 1), text, text)
    page.head, page.css = SCRIPT, CSS
    address = serve(page, PageConfig(port=0), [("ann", "secret")])
    sessions, real = page.app.tokens, page.app.tokens.clock
    window = browser.new_context()

    def enter() -> Any:
        tab = window.new_page()
        tab.goto(address)
        tab.get_by_label("username").fill("ann")
        tab.get_by_label("password").fill("secret")
        tab.get_by_role("button", name="Login").click()
        tab.get_by_label("Count of presses").wait_for()
        return tab

    try:
        tab = enter()
        count, note = tab.get_by_label("Count of presses"), tab.locator("#page-login")
        tab.get_by_role("button", name="Count").click()
        playwright.expect(count).to_have_value("1")
        sessions.clock = lambda: real() + sessions.seconds
        tab.get_by_role("button", name="Count").click()
        playwright.expect(note).to_contain_text("Your login has ended.")
        sessions.clock = real
        enter().close()
        tab.get_by_role("button", name="Count").click()
        playwright.expect(count).to_have_value("2")  # what stood on the page is there
        playwright.expect(note).to_have_count(0)
    finally:
        window.close()
        page.close()


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf")])
def test_a_login_of_no_duration_is_refused(hours: float) -> None:
    with pytest.raises(PageError, match=f"--session_hours is {hours:g}, expected more than 0, at most 8760"):
        check(PageConfig(session_hours=hours))
