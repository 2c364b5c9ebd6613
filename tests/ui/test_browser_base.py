"""Another base, chosen on the page: for who asked, for who has the page open, and for scripts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")
gradio_client = pytest.importorskip("gradio_client")

from coeff_diffusion.ui import PageConfig, open_page  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PATIENCE = 120_000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    config = PageConfig(subjects_dir=str(tmp_path / "subjects"), output_dir=str(tmp_path / "pictures"), port=0)
    yield open_page(config, block=False)
    gradio.close_all()


def test_to_another_base_and_back(browser: Any, address: str, tiny_xl_pipe: Any, tmp_path: Path) -> None:
    tiny_xl_pipe.save_pretrained(tmp_path / "tiny-xl")
    page, other = (browser.new_page(viewport={"width": 1280, "height": 900}) for _ in range(2))
    for one in (page, other):
        one.set_default_timeout(PATIENCE)
        one.goto(address)
        one.locator("#start-ready").wait_for()
    client = gradio_client.Client(address, verbose=False, download_files=str(tmp_path / "got"))

    def choose(name: str) -> None:
        page.get_by_role("button", name="Another base").click()
        field = page.locator("#base-choice input")
        field.fill(name)
        field.press("Enter")
        page.locator("#base-load").click()

    # A ready subject joins the library and is drawn; what cannot be a base is one sentence, and changes nothing.
    page.locator("#start-ready .thumbnail-item").first.click()
    page.locator("#draw-status").get_by_text("Saved in").wait_for()
    choose("/no/such/base")
    playwright.expect(page.locator("#base-status [role=alert]")).to_contain_text(
        "no such file or folder: '/no/such/base'"
    )
    playwright.expect(page.locator("#page-head")).to_contain_text("Drawing on the base embedded")
    page.reload()

    choose(str(tmp_path / "tiny-xl"))
    playwright.expect(page.locator("#page-head")).to_contain_text("Drawing on the base tiny-xl: Stable Diffusion XL")
    page.get_by_role("button", name="Settings", exact=False).first.click()
    playwright.expect(page.locator("#draw-width input[type=number]")).to_have_value("16")
    playwright.expect(page.locator("#draw-start")).to_contain_text("The ready subjects are for the embedded base")
    page.get_by_role("tab", name="Library", exact=True).click()
    card = page.locator("#library-cards .thumbnail-item")
    playwright.expect(card).to_contain_text("cat · for another base")
    card.click()
    page.get_by_text("It does not fit the base that is loaded").first.wait_for()

    # Who has the old page open is told, and what is pressed there breaks nothing.
    playwright.expect(other.locator("#base-changed")).to_contain_text("or the program was started anew")
    other.locator("#draw-prompt textarea").fill("a dog")
    other.locator("#draw-button").click()
    playwright.expect(other.locator("#draw-status [role=alert]")).to_have_text(
        "the base was changed to another one; load the page again"
    )
    other.locator("#base-changed button").click()
    playwright.expect(other.locator("#page-head")).to_contain_text("tiny-xl")

    # A script that was there before goes on with the base of now, and changes it back.
    files, _ = client.predict("a dog", None, {"steps": 1, "prompt_2": "a cat"}, False, api_name="/draw")
    assert len(files) == 1
    assert client.predict(api_name="/base")["choices"] == [str(tmp_path / "tiny-xl"), "embedded"]
    with pytest.raises(gradio_client.exceptions.AppError, match="no such file or folder"):
        client.predict("/no/such/base", api_name="/base")
    assert client.predict("embedded", api_name="/base")["base"] == "embedded"
    client.close()
    page.locator("#base-changed button").click()
    playwright.expect(page.locator("#page-head")).to_contain_text("Drawing on the base embedded")
    page.locator("#start-ready .thumbnail-item").first.click()
    page.locator("#draw-status").get_by_text("Saved in").wait_for()
    page.close()
    other.close()
