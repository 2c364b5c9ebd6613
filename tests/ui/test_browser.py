"""The page in a real browser: what a person does with it to draw, on a tiny base."""

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browsing import complaints, find_chromium
from diffusers import StableDiffusionPipeline
from PIL import Image
from subject_maker import make_subject

from coeff_diffusion import Coefficients, CoefficientsInfo
from coeff_diffusion.images.files import read_parameters
from coeff_diffusion.images.start_picture import StartPicture
from coeff_diffusion.inference.studio import Studio
from coeff_diffusion.sources.image_card import extract
from coeff_diffusion.sources.library import Library

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.ui import PageConfig, open_page  # noqa: E402
from coeff_diffusion.ui.page import build  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    # gradio sums up its queue with an option of pandas that pandas 3 calls deprecated.
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
]

PATIENCE = 60_000  # milliseconds, for a machine that is busy with something else
PROMPT = "a sks dog and a <i>sks cat</i> on grass"


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
    (tmp_path / "styles").mkdir()
    config = PageConfig(
        styles_dir=str(tmp_path / "styles"),
        base=str(tiny_base_dir),
        subjects_dir=str(subjects_dir),
        output_dir=str(tmp_path / "pictures"),
        port=0,
    )
    yield open_page(config, block=False)
    gradio.close_all()


class Draw:
    """The Draw tab in a window, as a person sees it."""

    def __init__(self, browser: Any, address: str, width: int = 1280, height: int = 900) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        self.page.set_default_timeout(PATIENCE)
        self.hosts: set[str] = set()
        self.problems = complaints(self.page, console=True)
        self.page.on("request", lambda sent: self.hosts.add(sent.url.split("/")[2] if "://" in sent.url else ""))
        self.page.goto(address)
        self.button = self.page.locator("#draw-button")
        self.status = self.page.locator("#draw-status")
        self.prompt = self.page.locator("#draw-prompt textarea")
        self.waiting = self.page.locator("#draw-line li")
        self.button.wait_for()
        self.page.locator(".main > [data-testid=status-tracker]").wait_for(state="hidden")

    def number(self, name: str) -> Any:
        return self.page.locator(f"#draw-{name} input[type=number]")

    def subject(self, number: int) -> Any:
        return self.page.get_by_label(f"Subject {number}", exact=True)

    def choose(self, number: int, name: str) -> None:
        self.subject(number).click()
        self.page.get_by_role("option", name=name, exact=True).click()

    def unfold(self, name: str) -> None:
        self.page.locator(f"#draw-{name} > button").click()

    def upload(self, file: Path) -> None:
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("#draw-upload").click()
        chooser.value.set_files(file)

    def says(self, text: str) -> None:
        playwright.expect(self.status).to_contain_text(text, timeout=PATIENCE)

    def picture(self, caption: str) -> Any:
        found = self.page.locator("#draw-gallery").get_by_role("img", name=caption)
        playwright.expect(found).to_be_visible(timeout=PATIENCE)
        return found


def test_ci_insists_on_a_browser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium found: apt-get install chromium"):
        find_chromium()
    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no Chromium found"):
        find_chromium()


def test_draw_and_draw_again(browser: Any, address: str, subjects_dir: Path, tmp_path: Path) -> None:
    draw = Draw(browser, address)
    playwright.expect(draw.page.locator("#draw-empty")).to_have_text("Write what you want to see and press Draw.")

    # Pick a subject from the folder, add another from a file: each has a row and says what calls it up.
    draw.choose(1, "dog")
    playwright.expect(draw.prompt).to_have_value("a sks dog", timeout=PATIENCE)  # something to begin with
    draw.upload(tmp_path / "cat.safetensors")
    draw.says("'cat' joined the library.")
    playwright.expect(draw.subject(2)).to_have_value("cat")
    playwright.expect(draw.subject(3)).to_be_visible()
    playwright.expect(draw.prompt).to_have_value("a sks dog, sks cat")
    _chips(draw)
    playwright.expect(draw.page.locator("#draw-words")).to_contain_text("dog: write “sks dog”")
    draw.number("strength-1").fill("0.5")

    # Draw: the base and the subjects side by side, from the seed asked for. Enter draws.
    draw.unfold("settings")
    draw.page.locator("#draw-random input").uncheck()
    draw.number("seed").fill("5")
    draw.number("steps").fill("2")
    draw.page.locator("#draw-compare input").check()
    draw.page.locator("#draw-embed input").check()
    draw.prompt.fill(PROMPT)
    draw.prompt.press("Enter")
    picture = draw.picture("dog + cat, seed 5")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 16
    left, right = (draw.picture(words).bounding_box() for words in ("base, seed 5", "dog + cat, seed 5"))
    assert (left["y"], left["x"] + left["width"] < right["x"]) == (right["y"], True)
    draw.says("00001-5-base.png, 00002-5.png")
    assert draw.page.locator("#draw-slider img").count() == 2  # the one over the other
    base, saved = sorted((tmp_path / "pictures").iterdir())
    found = read_parameters(saved)
    assert (found.prompt, found.subjects, found.steps) == (PROMPT, {"dog": 0.5, "cat": 1.0}, 2)
    assert read_parameters(base).prompt == "a dog and a <i>cat</i> on grass"
    assert [subject.info.name for subject in extract(saved)] == ["dog", "cat"]

    # What is downloaded is the file that was saved, subjects included.
    picture.click()
    with draw.page.expect_download() as download:
        draw.page.locator("#draw-gallery").get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == saved.name
    assert Path(download.value.path()).read_bytes() == saved.read_bytes()

    # A picture dropped in gives its settings back, and its subject where nobody has it any more.
    (subjects_dir / "cat.safetensors").unlink()
    draw.prompt.fill("something else")
    draw.number("steps").fill("3")
    draw.number("strength-1").fill("2")
    draw.choose(1, "no subject")
    playwright.expect(draw.number("strength-1")).to_be_hidden(timeout=PATIENCE)
    draw.page.set_input_files("#draw-drop input[type=file]", saved)
    draw.says("its subject joined the library as 'cat'")
    playwright.expect(draw.prompt).to_have_value(PROMPT)
    playwright.expect(draw.number("steps")).to_have_value("2")
    playwright.expect(draw.number("strength-1")).to_have_value("0.5")
    draw.page.locator("#draw-compare input").uncheck()
    draw.button.click()
    draw.says("00003-5.png")
    again = tmp_path / "pictures" / "00003-5.png"
    assert Image.open(again).tobytes() == Image.open(saved).tobytes()

    # The last seed again, after a random one.
    draw.page.locator("#draw-random input").check()
    draw.button.click()
    draw.says("00004-")
    draw.number("seed").fill("1")
    draw.page.locator("#draw-reuse").click()
    playwright.expect(draw.page.locator("#draw-random input")).not_to_be_checked()
    drawn = next((tmp_path / "pictures").glob("00004-*"))
    playwright.expect(draw.number("seed")).to_have_value(str(read_parameters(drawn).seed))

    # From the library to a drawing.
    draw.page.locator("#draw-chip-1").click()
    playwright.expect(draw.subject(1)).to_have_value("no subject")
    draw.page.locator("#draw-chip-2").click()
    playwright.expect(draw.subject(2)).to_be_hidden()  # a row that nobody needs
    playwright.expect(draw.prompt).to_have_value("a dog and a <i>cat</i> on grass")  # and no answer will change it
    draw.prompt.fill("a dog on grass")
    draw.page.get_by_role("tab", name="Library").click()
    draw.page.locator("#library-cards img").nth(1).click()
    draw.page.locator("#library-draw").click()
    playwright.expect(draw.subject(1)).to_have_value("dog")
    playwright.expect(draw.prompt).to_have_value("a sks dog on grass")
    draw.button.wait_for()

    assert draw.hosts <= {address.split("/")[2], ""}, "the page must not ask anyone else for anything"
    _styles(draw, tmp_path / "styles")
    assert draw.problems == []
    draw.page.close()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # gradio looks at the picture
def test_draw_from_a_picture_and_paint_what_changes(browser: Any, address: str, tmp_path: Path) -> None:
    draw, pictures = Draw(browser, address), tmp_path / "pictures"
    colours = np.indices((32, 24)).transpose(1, 2, 0).astype(np.uint8) * 7
    photo = Image.fromarray(np.concatenate([colours, colours[..., :1]], axis=2))
    photo.save(tmp_path / "photo.png")
    draw.unfold("settings")
    draw.unfold("from")
    draw.page.set_input_files("#draw-from-picture input[type=file]", tmp_path / "photo.png")
    playwright.expect(draw.number("width")).to_have_value("24", timeout=PATIENCE)  # of its shape
    playwright.expect(draw.number("height")).to_have_value("32")
    canvas = draw.page.locator("#draw-paint .pixi-target.visible canvas")
    canvas.wait_for()
    draw.number("steps").fill("4")
    draw.number("denoising-strength").fill("0.5")
    draw.prompt.fill("a cat")
    draw.prompt.press("Enter")
    draw.says("00001-")
    first = StartPicture.read(next(pictures.glob("00001-*")))
    assert first == StartPicture(photo)

    # What is painted over changes, and nothing else: with the mouse, or a finger, of which nothing is seen before it
    # touches, and the button is pressed right after the last stroke.
    draw.page.wait_for_timeout(500)  # the editor fits its canvas to the picture
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    draw.page.mouse.move(*middle)
    draw.page.mouse.down()
    draw.page.mouse.move(middle[0] + 4, middle[1], steps=4)
    draw.page.mouse.up()
    draw.number("mask-blur").fill("0")
    draw.page.mouse.move(0, 0)
    finger = draw.page.context.new_cdp_session(draw.page)
    for aside in (-60, 60):
        place = {"x": middle[0] + aside, "y": middle[1]}
        finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [place]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    draw.button.dispatch_event("click")
    draw.says("00002-")
    saved = next(pictures.glob("00002-*"))
    start = StartPicture.read(saved)
    assert start is not None
    stays = np.asarray(start.mask) == 0
    assert 0.2 < stays.mean() < 1
    left, centre, right = (~stays[:, part].all(axis=0) for part in (slice(0, 9), slice(10, 14), slice(15, 24)))
    assert left.any()
    assert centre.any()
    assert right.any()
    assert start.image == photo
    assert (np.asarray(Image.open(saved))[stays] == np.asarray(photo)[stays]).all()

    # The picture brings all of it back.
    draw.page.reload()
    draw.unfold("settings")
    draw.page.set_input_files("#draw-drop input[type=file]", saved)
    draw.says("its settings are in the controls")
    playwright.expect(draw.number("denoising-strength")).to_have_value("0.5")
    draw.page.locator("#draw-from-picture img").wait_for()
    draw.button.click()
    draw.says("00003-")
    again = next(pictures.glob("00003-*"))
    assert Image.open(again).tobytes() == Image.open(saved).tobytes()
    assert draw.problems == []
    draw.page.close()


def test_a_line_refusals_and_a_phone(
    browser: Any, tiny_pipe: StableDiffusionPipeline, subjects_dir: Path, tmp_path: Path
) -> None:
    service = StudioService(Studio(tiny_pipe), Library(subjects_dir), tmp_path / "pictures")
    blocks = build(service)
    try:
        draw = Draw(browser, serve(blocks, PageConfig(port=0), []), width=390, height=844)
        _phone(draw)
        _refusals(draw, subjects_dir, tmp_path)
        _cancel(draw, service)
        _line(draw, service)
    finally:
        blocks.close()


def _styles(draw: Draw, folder: Path) -> None:
    """A style and a wildcard of the folder are written out, and the picture brings back what came out."""
    (folder / "wildcards").mkdir(parents=True)
    (folder / "styles.csv").write_text("name,prompt,negative_prompt\nOil,oil painting of {prompt},\n")
    (folder / "wildcards" / "colour.txt").write_text("red\n")
    draw.page.reload()
    draw.unfold("settings")
    draw.number("steps").fill("2")
    draw.page.locator("#draw-styles input").click()
    draw.page.get_by_role("option", name="Oil", exact=True).click()
    draw.prompt.fill("a __colour__ dog")
    draw.button.click()
    draw.says("drawn as: oil painting of a red dog")


def _chips(draw: Draw) -> None:
    """The word of each subject stands in the prompt, goes and comes by its chip, and is missed before drawing."""
    first, second = (draw.page.locator(f"#draw-chip-{number}") for number in (1, 2))
    reading = draw.page.locator("#draw-reading")
    playwright.expect(first).to_have_text("sks dog ✕")
    playwright.expect(reading).to_have_text("6/77 tokens")  # learned words count as their vectors
    draw.prompt.fill("a cat in the grass")
    playwright.expect(reading).to_contain_text("the prompt does not contain 'sks dog', so 'dog' does not act")
    second.click()  # adds it
    playwright.expect(draw.prompt).to_have_value("a sks cat in the grass")
    second.click()
    playwright.expect(draw.subject(2)).to_have_value("no subject")
    playwright.expect(draw.prompt).to_have_value("a cat in the grass")
    playwright.expect(second).to_be_hidden()
    draw.choose(2, "cat")
    playwright.expect(draw.prompt).to_have_value("a sks cat in the grass")
    draw.prompt.fill("a cat " * 80)
    playwright.expect(reading).to_contain_text("162/77 tokens")
    playwright.expect(reading).to_contain_text("are cut off, the text encoder does not read 'cat a cat")


def _phone(draw: Draw) -> None:
    """On a phone: the prompt, the button, the result, then the rest; and nothing is wider than the screen."""
    parts = ("#draw-prompt", "#draw-button", "#draw-empty", "#draw-subject-1", "#draw-settings")
    tops = [draw.page.locator(part).bounding_box()["y"] for part in parts]
    assert tops == sorted(tops)
    draw.unfold("settings")
    draw.unfold("fine")
    assert draw.page.evaluate("document.documentElement.scrollWidth") <= 390


def _refusals(draw: Draw, subjects_dir: Path, tmp_path: Path) -> None:
    """What cannot be done is said beside the button, and as text whatever it is made of."""
    info = CoefficientsInfo(base_model="<b>another</b>")
    Coefficients({"a.b": torch.ones(2, 2)}, info=info).save(tmp_path / "stranger.safetensors")
    draw.upload(tmp_path / "stranger.safetensors")
    draw.says("the subject is for <b>another</b>")
    draw.says("a.b is no attention layer of this base")
    draw.page.get_by_test_id("toast-text").get_by_text("the subject is for <b>another</b>").wait_for()

    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    draw.page.set_input_files("#draw-drop input[type=file]", tmp_path / "photo.png")
    draw.says("photo.png carries no subject")
    playwright.expect(draw.page.locator("#draw-drop")).not_to_contain_text("photo")  # it takes the next one

    draw.page.locator("#draw-random input").uncheck()
    draw.number("seed").fill("-1")
    draw.button.click()
    draw.says("seed is -1, expected 0 to 4294967295")
    draw.page.locator("#draw-random input").check()

    draw.choose(1, "dog")
    playwright.expect(draw.prompt).to_have_value("a sks dog", timeout=PATIENCE)
    (subjects_dir / "dog.safetensors").rename(tmp_path / "dog.safetensors")
    draw.button.click()
    draw.says("no subject 'dog' in")
    playwright.expect(draw.button).to_be_enabled()
    (tmp_path / "dog.safetensors").rename(subjects_dir / "dog.safetensors")


def _cancel(draw: Draw, service: StudioService) -> None:
    """Cancel, and Escape as well, ends a drawing at once."""
    for name, value in (("width", 64), ("height", 64), ("pictures", 4), ("steps", 100)):
        draw.number(name).fill(str(value))
        draw.number(name).press("Tab")
    draw.button.click()
    draw.says("of 100")  # how far it is
    draw.page.locator("#draw-gallery").get_by_role("img", name="forming").first.wait_for()
    draw.prompt.press("Escape")
    draw.says("Cancelled; nothing was saved.")
    playwright.expect(draw.page.locator("#draw-cancel")).to_be_disabled()
    assert not list(service.output_dir.glob("*.png"))


def _line(draw: Draw, service: StudioService) -> None:
    """What is asked for meanwhile waits in line, also for a page that is loaded again, and is drawn for nobody."""
    draw.number("steps").fill("2")
    draw.number("pictures").fill("1")
    draw.number("pictures").press("Tab")
    with service.studio.exclusive():  # what is at work goes on when this ends
        for prompt in ("at work", "a <b>first</b> one", "a second one", "a third one"):
            draw.prompt.fill(prompt)
            draw.button.click()
            if prompt == "at work":
                draw.says("Getting ready")
                playwright.expect(draw.button).to_have_text("Add to the line")
            else:
                playwright.expect(draw.waiting.filter(has_text=prompt)).to_be_visible(timeout=PATIENCE)
        draw.prompt.fill("what is written now changes none of them")
        draw.waiting.nth(1).get_by_role("button", name="Sooner").click()
        playwright.expect(draw.waiting.first).to_contain_text("a second one · dog · 1 picture", timeout=PATIENCE)
        draw.waiting.nth(2).get_by_role("button", name="Take out").click()
        playwright.expect(draw.waiting).to_have_count(2, timeout=PATIENCE)
        assert draw.page.evaluate("document.documentElement.scrollWidth") <= 390
        draw.page.reload()
        draw.says("Getting ready")
        in_line = [re.compile("a second"), re.compile("a <b>first")]
        playwright.expect(draw.waiting).to_have_text(in_line, timeout=PATIENCE)
        draw.page.locator("#draw-cancel").click()
        draw.says("stopping at the next step")
    draw.says("00002-")
    playwright.expect(draw.waiting).to_have_count(0)
    playwright.expect(draw.button).to_have_text("Draw")
    prompts = [read_parameters(path).prompt for path in sorted(service.output_dir.glob("*.png"))]
    assert prompts == ["a second one", "a <b>first</b> one"]

    with service.studio.exclusive():
        draw.button.click()
        for count in (0, 1, 2, 0, 1):
            playwright.expect(draw.waiting).to_have_count(count, timeout=PATIENCE)
            draw.says("Getting ready")
            (draw.page.get_by_role("button", name="Take all out") if count == 2 else draw.button).click()
        playwright.expect(draw.waiting).to_have_count(2, timeout=PATIENCE)
        draw.page.close()
    until = time.monotonic() + PATIENCE / 1000
    while service.jobs.busy:
        assert time.monotonic() < until, "the line did not go on"
        time.sleep(0.1)
    assert len(list(service.output_dir.glob("*.png"))) == 2 + 3


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_what_is_dropped_is_taken_and_never_opened_instead(browser: Any, address: str, tmp_path: Path) -> None:
    draw, files = Draw(browser, address), []
    for number in range(4):
        files.append(str(tmp_path / f"photo-{number}.png"))
        Image.new("RGB", (64, 64), (60 * number, 90, 120)).save(files[-1])
    mouse = draw.page.context.new_cdp_session(draw.page)

    def drop(place: str, *dropped: str) -> None:
        field = draw.page.locator(place)
        field.scroll_into_view_if_needed()
        box = field.bounding_box()
        data = {"items": [], "files": dropped, "dragOperationsMask": 1}
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data}
        for moment in ("dragEnter", "dragOver", "drop"):
            mouse.send("Input.dispatchDragEvent", {"type": moment, **where})

    # Another picture takes the place of one that is there, and beside the fields nothing happens.
    draw.unfold("from")
    shown = draw.page.locator("#draw-from-picture img")
    for number in (0, 1):
        drop("#draw-from-picture", files[number])
        playwright.expect(shown).to_have_attribute("src", re.compile(f"photo-{number}"), timeout=PATIENCE)
    for place in ("#draw-result", "#draw-from-embed"):
        drop(place, files[2])
    playwright.expect(shown).to_have_attribute("src", re.compile("photo-1"))

    # More of them come to those that are there.
    draw.page.get_by_role("tab", name="Train", exact=True).click()
    for count in (2, 3, 4):
        drop("#train-pictures", *(files[:2] if count == 2 else files[count - 1 : count]))
        playwright.expect(draw.page.locator("#train-crops img")).to_have_count(count, timeout=PATIENCE)
    assert len(draw.page.context.pages) == 1
    assert draw.page.url == address
    assert draw.problems == []
    draw.page.close()


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_earlier_pictures_come_back(browser: Any, address: str, tmp_path: Path) -> None:
    draw, pictures = Draw(browser, address), tmp_path / "pictures"
    draw.unfold("settings")
    draw.number("steps").fill("2")
    for number, prompt in enumerate(("a red dog", "a blue cat"), start=1):
        draw.prompt.fill(prompt)
        draw.button.click()
        draw.says(f"{number:05d}-")
    cards, facts = draw.page.locator("#history-cards img"), draw.page.locator("#history-facts")
    draw.unfold("history")
    playwright.expect(cards).to_have_count(2)
    cards.nth(1).click()
    playwright.expect(facts).to_contain_text("prompt: a red dog")

    # Its settings again: the same picture.
    draw.page.locator("#history-settings").click()
    playwright.expect(draw.prompt).to_have_value("a red dog")
    draw.button.click()
    draw.says("00003-")
    first, again = (next(pictures.glob(f"{number:05d}-*")) for number in (1, 3))
    assert Image.open(first).tobytes() == Image.open(again).tobytes()
    playwright.expect(cards).to_have_count(3)  # whoever looks sees the new one

    # Of several that are deleted all come back, one by one; what is gone for good is said, as text.
    lost, undo = pictures / "00009-<i>.png", draw.page.locator("#history-undo")
    shutil.copy(first, lost)
    for _ in range(2):
        draw.unfold("history")
    for count in (3, 2):
        cards.first.click()
        playwright.expect(facts).to_contain_text("prompt: a red dog")
        draw.page.locator("#history-delete").click()
        playwright.expect(cards).to_have_count(count)
    for count in (3, 4):
        undo.click()
        playwright.expect(cards).to_have_count(count)
    playwright.expect(undo).to_be_hidden()
    lost.unlink()
    draw.page.locator("#history-settings").click()
    draw.page.get_by_test_id("toast-text").get_by_text("there is no picture '00009-<i>.png'").wait_for()
    for _ in range(2):
        draw.unfold("history")
    playwright.expect(cards).to_have_count(3)
    cards.nth(2).click()
    playwright.expect(facts).to_contain_text("prompt: a red dog")

    # Favourites, and what is deleted comes back.
    draw.page.locator("#history-like").click()
    playwright.expect(draw.page.locator("#history-like")).to_have_text("No longer a favourite")
    draw.page.locator("#history-favourites input").check()
    playwright.expect(cards).to_have_count(1)
    draw.page.locator("#history-delete").click()
    playwright.expect(draw.page.locator("#history-status")).to_contain_text("is in the trash")
    playwright.expect(cards).to_have_count(0)
    assert not first.exists()
    draw.page.locator("#history-undo").click()
    playwright.expect(cards).to_have_count(1)
    assert first.exists()

    # From one of them to the next, with a subject; its file alone brings back both, and is drawn again.
    draw.page.locator("#history-start").click()
    draw.page.locator("#draw-from-picture img").wait_for()
    draw.choose(1, "dog")
    playwright.expect(draw.prompt).to_have_value(re.compile("sks dog"))
    draw.number("denoising-strength").fill("0.5")
    draw.button.click()
    draw.says("00004-")
    drawn = next(pictures.glob("00004-*"))
    draw.page.reload()
    draw.page.set_input_files("#draw-drop input[type=file]", drawn)
    draw.says("its settings are in the controls")
    draw.page.locator("#draw-from-picture img").wait_for()
    draw.button.click()
    draw.says("00005-")
    again = next(pictures.glob("00005-*"))
    assert Image.open(again).tobytes() == Image.open(drawn).tobytes()
    for file in (drawn, again):
        start = StartPicture.read(file)
        assert start is not None
        assert start.digits == StartPicture(Image.open(first)).digits
        assert read_parameters(file).subjects == {"dog": 1.0}

    # What is being written survives a reload.
    draw.prompt.fill("a green pot")
    draw.page.reload()
    playwright.expect(draw.prompt).to_have_value("a green pot")
    assert draw.problems == []
    draw.page.close()
