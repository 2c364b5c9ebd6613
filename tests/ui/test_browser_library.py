"""The Library tab in a real browser: all that a person does with subjects, from finding one to sharing it."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import complaints
from diffusers import StableDiffusionPipeline
from PIL import Image
from subject_maker import of_stable_diffusion

from coeff_diffusion import Coefficients
from coeff_diffusion.images.files import save_picture
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import chunks, extract
from coeff_diffusion.sources.library import Library
from coeff_diffusion.sources.qr_code import read_qr
from coeff_diffusion.subject.safetensors_file import FILE_NAME

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui import library  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    # Gradio sums up what its events took with options that pandas gives up.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
]
MARKUP = '<img src=x onerror="window.hacked = 1"> ${window.hacked = 2} {{value}}'


@pytest.fixture
def service(
    tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path
) -> StudioService:
    folder = tmp_path / "subjects"
    (folder / "rex" / "samples").mkdir(parents=True)
    new_subject("Rex", class_word="dog").save(folder / "rex" / FILE_NAME)
    Image.new("RGB", (16, 16), "lime").save(folder / "rex" / "samples" / "step_000010_0.png")
    new_subject(MARKUP, MARKUP, class_word="<b>cat</b>").save(folder / "strange.safetensors")
    of_stable_diffusion(name="foreign", trigger="zwx house").save(folder / "foreign.safetensors")
    (folder / "damaged.safetensors").write_bytes(b"{}")
    return StudioService(Studio(tiny_pipe), Library(folder), tmp_path / "pictures")


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    with gradio.Blocks() as page:
        with gradio.Tab("Start"):
            gradio.Markdown("...")
        with gradio.Tab("Library") as tab:
            library.build(service, page, tab)
    page.queue(default_concurrency_limit=1)
    with socket.socket() as probe:  # gradio would look at other ports first and leave sockets open
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"server_name": "127.0.0.1", "server_port": port, "css": library.CSS, "quiet": True, "ssr_mode": False}
    _, local, _ = page.launch(prevent_thread_lock=True, show_error=True, **options)
    yield local
    page.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The tab, opened, on a page whose scripts made no mistake in the end."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems = complaints(page)
    page.goto(address)
    page.get_by_role("tab", name="Library").click(timeout=30_000)
    playwright.expect(cards(page)).to_have_count(4)
    yield page
    assert problems == []
    assert page.evaluate("window.hacked") is None
    page.close()


def cards(page: Any) -> Any:
    return page.locator("#library-cards button.thumbnail-item")


def says(page: Any, text: str) -> None:
    playwright.expect(page.locator("#library-status")).to_contain_text(text)


def saved(page: Any, press: Callable[[], None], path: Path) -> Path:
    with page.expect_download(timeout=20_000) as download:
        press()
    download.value.save_as(path)
    return path


def test_finding_renaming_deleting(page: Any, service: StudioService) -> None:
    folder, facts = service.library.folder, page.locator("#library-facts")
    for number, caption in enumerate(["damaged · cannot be read", "foreign · for another base", "rex · sks dog"]):
        playwright.expect(cards(page).nth(number)).to_contain_text(caption)
    playwright.expect(cards(page).nth(3)).to_contain_text("strange · <img src=x")

    # What cannot be used says why; what strangers wrote is text.
    cards(page).nth(0).click()
    playwright.expect(facts).to_contain_text("The file cannot be read: not a subject: it is a text")
    playwright.expect(page.locator("#library-share")).to_be_hidden()
    cards(page).nth(1).click()
    playwright.expect(facts).to_contain_text("It does not fit the base that is loaded: the subject is for some/base")
    playwright.expect(page.locator("#library-share")).to_be_visible()
    cards(page).nth(3).click()
    playwright.expect(facts.locator("dd").first).to_have_text(MARKUP)
    playwright.expect(facts).to_contain_text("<b>cat</b>")

    # Search, and pick by keyboard.
    page.get_by_label("Search").fill("DOG")
    playwright.expect(cards(page)).to_have_count(1)
    cards(page).first.focus()
    page.keyboard.press("Enter")
    playwright.expect(facts).to_contain_text("sks dog")

    # A name that is none is refused in words; a good one takes the run as a whole.
    name = page.locator("#library-name textarea")
    playwright.expect(name).to_have_value("rex")
    name.fill("../<b>x</b>")
    page.locator("#library-rename").click()
    says(page, "the name holds '/', '<', '>'; expected letters, digits, space, dot, dash and underscore")
    name.fill("Rex the 2nd")
    name.press("Enter")
    says(page, "“rex” is called “Rex the 2nd” now")
    assert (folder / "Rex the 2nd" / "samples" / "step_000010_0.png").is_file()

    # Deleting is undone by one button.
    page.get_by_label("Search").fill("")
    playwright.expect(cards(page)).to_have_count(4)
    page.locator("#library-delete").click()
    says(page, "“Rex the 2nd” is in the trash; “Put back” undoes it")
    playwright.expect(cards(page)).to_have_count(3)
    playwright.expect(page.locator("#library-detail")).to_be_hidden()
    assert not (folder / "Rex the 2nd").exists()
    page.locator("#library-put-back").click()
    says(page, "“Rex the 2nd” is back")
    playwright.expect(cards(page)).to_have_count(4)
    assert (folder / "Rex the 2nd" / "samples" / "step_000010_0.png").is_file()


def test_what_another_window_renamed_is_not_drawn_with_in_silence(page: Any, service: StudioService) -> None:
    cards(page).nth(2).click()
    playwright.expect(page.locator("#library-facts")).to_contain_text("sks dog")
    service.library.rename("rex", "tom")
    page.locator("#library-draw").click()
    page.get_by_test_id("toast-text").get_by_text("no subject 'rex' in").wait_for()


def test_sharing_and_importing(
    page: Any, service: StudioService, new_subject: Callable[..., Coefficients], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Out: the file, a card of the newest sample, a QR code.
    cards(page).nth(2).click()
    file = saved(page, page.locator("#library-download").click, tmp_path / "out.safetensors")
    assert Coefficients.load(file) == new_subject("Rex", class_word="dog")
    page.get_by_role("button", name="Card or QR code").click()
    page.locator("#library-card").click()
    says(page, "rex-card.png carries 'Rex'")
    card = saved(page, page.locator("#library-made a").first.click, tmp_path / "out.png")
    assert extract(card) == [new_subject("Rex", class_word="dog")]
    assert Image.open(card).getpixel((0, 0)) == (0, 255, 0)
    page.locator("#library-qr").click()
    says(page, "the base")  # only known ones fit into a code
    cards(page).nth(1).click()
    playwright.expect(page.locator("#library-made")).to_be_hidden()
    page.locator("#library-qr").click()
    says(page, "rounded to 8 bits: no value changes by more than")
    code = read_qr(saved(page, page.locator("#library-made a").first.click, tmp_path / "code.png"))
    assert code is not None
    assert code.info.name == "foreign"

    # To the Hub: what is typed into the password field is gone after it was used.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page.get_by_role("button", name="Push to the Hub").click()
    page.get_by_label("Repository").fill("./here")
    token = page.get_by_label("Access token")
    token.fill("hf_secretsecretsecret")
    assert token.get_attribute("type") == "password"
    page.locator("#library-push-button").click()
    says(page, "'./here' is no repository of the Hub")
    playwright.expect(token).to_have_value("")

    # In: a card with two subjects, a file that is none, a folder as the Hub has it.
    two = [new_subject("Tom", "sks cat"), new_subject("Amy", "sks owl")]
    save_picture(Image.new("RGB", (8, 8)), tmp_path / "two.png", chunks=chunks(two))
    page.get_by_role("button", name="Import").click()
    upload = page.locator("#library-file input[type=file]")
    upload.set_input_files(tmp_path / "two.png")
    says(page, "In the library now: “Tom”, “Amy”")
    playwright.expect(cards(page)).to_have_count(6)
    playwright.expect(page.locator("#library-facts")).to_contain_text("sks owl")
    (tmp_path / "none.safetensors").write_bytes(b"PK\x03\x04" + bytes(20))
    upload.set_input_files(tmp_path / "none.safetensors")
    says(page, "none.safetensors: not a subject: it is a zip archive")
    (tmp_path / "shared").mkdir()
    new_subject("Shared", "sks fox").save(tmp_path / "shared" / FILE_NAME)
    page.get_by_label("From the Hub").fill(str(tmp_path / "shared"))
    page.locator("#library-fetch").click()
    says(page, "In the library now: “shared”")
    assert (service.library.folder / "shared" / FILE_NAME).is_file()

    # On a phone nothing is wider than the screen.
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
