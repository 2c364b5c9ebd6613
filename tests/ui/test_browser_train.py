"""The Train and Timeline tabs in a real browser: five dropped pictures, a reload on the way, the best step kept."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import complaints
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

playwright = pytest.importorskip("playwright.sync_api")
gradio = pytest.importorskip("gradio")

from coeff_diffusion import Coefficients  # noqa: E402
from coeff_diffusion.inference.studio import Studio  # noqa: E402
from coeff_diffusion.service import Bases, StudioService, TrainingForm  # noqa: E402
from coeff_diffusion.service.caption_writer import CaptionWriter  # noqa: E402
from coeff_diffusion.service.presets import PRESETS  # noqa: E402
from coeff_diffusion.sources.library import Library  # noqa: E402
from coeff_diffusion.ui import PageConfig, api, timeline, train  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    # gradio, about its own use of pandas when it sums up how its queue did.
    pytest.mark.filterwarnings("ignore::pandas.errors.Pandas4Warning"),
]
expect = playwright.expect
WAIT = 60_000


@pytest.fixture
def service(tiny_pipe: StableDiffusionPipeline, tiny_blip_dir: Path, tmp_path: Path) -> Iterator[StudioService]:
    service = StudioService(Studio(tiny_pipe), Library(tmp_path / "subjects"), tmp_path / "pictures")
    service.caption_writer = CaptionWriter(str(tiny_blip_dir), tiny_pipe.device)
    yield service
    service.close()


@pytest.fixture
def address(service: StudioService) -> Iterator[str]:
    with gradio.Blocks(analytics_enabled=False) as blocks:
        for title, module in (("Train", train), ("Timeline", timeline)):
            with gradio.Tab(title) as tab:
                module.build(service, blocks, tab)
        api.build(Bases(service))
    yield serve(blocks, PageConfig(port=0), [])
    blocks.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Five photos of a thing, and the first once more."""
    paths = []
    for place in (4, 14, 24, 34, 44, 4):
        image = Image.new("RGB", (80, 60), (90, 100, 110))
        ImageDraw.Draw(image).ellipse((place, 12, place + 26, 44), fill=(220, 60, 40))
        paths.append(str(tmp_path / f"photo <b>{len(paths)}.png"))
        image.save(paths[-1])
    return paths


def fits(page: Any) -> bool:
    """Whether nothing hangs over the right edge."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


def test_train_reload_scrub_and_keep(
    browser: Any, address: str, service: StudioService, photos: list[str], tmp_path: Path
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    problems = complaints(page)
    box = lambda name: page.locator(f"#{name} input, #{name} textarea")  # noqa: E731
    page.goto(address)
    start = page.get_by_role("button", name="Start training")
    start.wait_for(timeout=WAIT)

    # What is missing is said at once, in the words of the page.
    start.click()
    refused = page.locator("#train-refused")
    expect(refused).to_contain_text("there are no pictures", timeout=WAIT)
    expect(refused).to_contain_text("class word is missing")
    expect(refused).to_contain_text("the subject has no name")

    # Six pictures and a broken one: squares of the six, a word about what is wrong, and each can be taken out.
    (tmp_path / "broken.png").write_text("no picture")
    page.set_input_files("#train-pictures input[type=file]", [*photos, str(tmp_path / "broken.png")])
    crops = page.locator("#train-crops .thumbnail-item")
    expect(crops).to_have_count(7, timeout=WAIT)
    expect(page.locator("#train-picture")).to_be_hidden()
    remarks = page.locator("#train-remarks")
    expect(remarks).to_contain_text("broken.png is not a readable picture")
    expect(remarks).to_contain_text("is nearly the same picture as")
    box("train-name").fill("Rex <i>the</i> dog")
    box("train-class-word").fill("dog")
    start.click()
    expect(refused).to_contain_text("broken.png is not a readable picture", timeout=WAIT)
    crops.first.click()
    box("train-caption").fill("a dog on the left")
    for problem in (r"broken\.png · cannot be used", r"5\.png · like photo .*0\.png"):
        (wrong,) = crops.get_by_text(re.compile(problem)).all()
        wrong.click()
        page.get_by_role("button", name=re.compile(rf"Take .*{problem.partition(' ')[0]} out")).click()
        expect(crops.get_by_text(re.compile(problem))).to_have_count(0, timeout=WAIT)
    expect(crops).to_have_count(5)
    expect(remarks).to_have_text("")
    crops.first.click()
    expect(box("train-caption")).to_have_value("a dog on the left", timeout=WAIT)

    # Two corners of the left half, clicked in the picture; then the same in numbers, of which nonsense is refused.
    whole = page.locator("#train-whole img")
    whole.scroll_into_view_if_needed()
    box_of = "e => [e.clientWidth, e.clientHeight, Math.min(e.clientWidth / 512, e.clientHeight / 384)]"
    width, height, scale = whole.evaluate(box_of)  # the picture lies in the middle of its element
    for x, y in ((0.5, 0.99), (0.01, 0.01)):
        before = whole.get_attribute("src")
        place = {"x": width / 2 + (x - 0.5) * 512 * scale, "y": height / 2 + (y - 0.5) * 384 * scale}
        whole.click(position=place)
        expect(whole).not_to_have_attribute("src", before, timeout=WAIT)
    expect(box("train-box")).to_have_value(re.compile(r"^1, 1, (49|50)[\d.]*, (98|99)[\d.]*$"), timeout=WAIT)
    box("train-box").fill("50, 0, 40, 100")
    box("train-box").press("Enter")
    page.get_by_text("the part that is used is [0.5").first.wait_for(timeout=WAIT)
    before = whole.get_attribute("src")
    box("train-box").fill("0, 0, 50, 100")
    box("train-box").press("Enter")
    expect(whole).not_to_have_attribute("src", before, timeout=WAIT)

    # What is painted over the picture counts alone.
    page.get_by_role("button", name="Paint what counts").click()
    paint = page.locator("#train-paint")
    paint.locator("canvas").first.wait_for()
    page.wait_for_timeout(1000)  # the editor fits its canvas to the picture
    paint.scroll_into_view_if_needed()
    middle = paint.locator("canvas").first.bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=8)
    page.mouse.up()
    page.get_by_role("button", name="Keep what is painted").click()
    page.locator("#train-captions").get_by_text("1 of 5 pictures have a painted mask").wait_for(timeout=WAIT)
    page.screenshot(path=tmp_path / "painted-1280.png", full_page=True)
    page.get_by_role("button", name="Write captions").click()
    page.locator("#train-captions").get_by_text("4 captions written").wait_for(timeout=WAIT)
    expect(box("train-caption")).to_have_value("a dog on the left")
    page.screenshot(path=tmp_path / "pictures-1280.png", full_page=True)

    # A preset fills the fold-out; what is changed there wins.
    page.get_by_role("radio", name="careful").check()
    page.get_by_role("button", name="More").click()
    expect(box("train-max-train-steps")).to_have_value("600")
    for name in ("validation-steps", "lr-warmup-steps"):  # all of it is there, or it would come over what is typed
        expect(box(f"train-{name}")).to_have_value(str(PRESETS["careful"][name.replace("-", "_")]))
    box("train-max-train-steps").fill("5000")
    box("train-validation-steps").fill("15")
    box("train-num-validation-images").fill("1")
    box("train-train-batch-size").fill("1")
    box("train-with-adapter").click()  # one of the list, or any other rank
    expect(page.get_by_role("option", name=re.compile(r"^lora:4: a second file of about \d+ KB$"))).to_be_visible()
    box("train-with-adapter").fill("lora:2")
    box("train-with-adapter").press("Enter")
    start.click()
    status = page.locator("#train-status")
    expect(status).to_contain_text("of 5000", timeout=WAIT)
    expect(page.locator("#train-own img")).to_have_count(5, timeout=WAIT)
    expect(page.locator("#train-earlier")).to_contain_text("step 0", timeout=WAIT)
    expect(page.locator("#train-previews img").first).to_be_visible(timeout=WAIT)
    expect(page.locator("#train-curve canvas, #train-curve svg").first).to_be_visible()
    expect(page.locator("#train-curve-words")).to_contain_text("best: step", timeout=WAIT)

    # The page comes back to where the training is; a second one waits in line and is taken out of it.
    page.reload()
    expect(status).to_contain_text("of 5000", timeout=WAIT)
    before = service.training_queue.latest
    assert before is not None
    assert before.state == "running"
    assert (before.folder / "pictures" / "001.txt").read_text() == "a dog on the left"
    assert len(list((before.folder / "pictures").glob("*.txt"))) == 5
    assert before.config.crop_boxes == {"001.png": [0, 0, 0.5, 1]}
    assert before.config.with_adapter == "lora:2"
    (painted,) = (before.folder / "pictures").glob("*-masklabel.png")
    with Image.open(painted) as mask:
        assert (painted.name, mask.mode) == ("001-masklabel.png", "L")
        assert mask.getpixel((mask.width // 2, mask.height // 2)) == 255
        assert mask.getpixel((0, 0)) == 0
    page.set_input_files("#train-pictures input[type=file]", photos[:5])
    box("train-name").fill("second")
    box("train-class-word").fill("dog")
    start.click()
    expect(status).to_contain_text("second waits, number 1 in line", timeout=WAIT)
    page.get_by_role("button", name="Take out of the line").click()
    expect(status).to_contain_text("second was stopped before its first step")
    page.get_by_role("radio", name="rex-i-the-i-dog").check()
    expect(status).to_contain_text("rex-i-the-i-dog: step", timeout=WAIT)
    page.screenshot(path=tmp_path / "train-1280.png", full_page=True)

    # On the timeline while it goes on: another step, another picture; the step is kept.
    page.get_by_role("tab", name="Timeline").click()
    box("timeline-run").click()
    page.get_by_role("option", name="rex-i-the-i-dog").click()
    picture = page.locator("#timeline-picture img")
    expect(picture).to_be_visible(timeout=WAIT)
    at = page.locator("#timeline-status")
    expect(page.locator("#timeline-curve-words")).to_contain_text("best: step", timeout=WAIT)
    first, shown = at.inner_text(), picture.get_attribute("src")
    page.locator("#timeline-step input[type=range]").focus()
    page.keyboard.press("Home")
    expect(at).to_have_text("step 10", timeout=WAIT)
    assert first != "step 10"
    expect(picture).not_to_have_attribute("src", str(shown))
    page.get_by_role("button", name="Best step").click()
    expect(at).to_have_text(re.compile(r"^\s*step \d*[02468]0\s*$"), timeout=WAIT)  # every twentieth is measured
    page.locator("#timeline-step input[type=range]").focus()
    page.keyboard.press("Home")
    expect(at).to_have_text("step 10", timeout=WAIT)
    page.get_by_role("button", name="Keep this step").click()
    expect(at).to_contain_text("Kept: step 10 is the subject rex-i-the-i-dog now; it stays so", timeout=WAIT)
    page.screenshot(path=tmp_path / "timeline-1280.png", full_page=True)
    page.set_viewport_size({"width": 390, "height": 844})
    assert fits(page)
    page.screenshot(path=tmp_path / "timeline-390.png", full_page=True)

    # There is something to cancel while pictures are drawn, and nothing afterwards.
    page.locator("#timeline-prompt textarea").fill("a sks dog on grass")
    page.get_by_role("button", name="Draw every step").click()
    cancel = page.get_by_role("button", name="Cancel")
    expect(cancel).to_be_enabled(timeout=WAIT)
    cancel.click()
    expect(at).to_contain_text("cancelled; what is drawn stays", timeout=WAIT)
    expect(cancel).to_be_disabled()

    # Stopping keeps what it has: the chosen step.
    page.get_by_role("tab", name="Train", exact=True).click()
    page.get_by_role("button", name="Stop and keep what it has").click()
    expect(status).to_contain_text("is in the library: write “a sks dog” in a prompt", timeout=WAIT)
    assert fits(page)
    page.screenshot(path=tmp_path / "train-390.png", full_page=True)
    info = Coefficients.load(service.library.path("rex-i-the-i-dog")).info
    assert (info.train_steps, info.name) == (10, "Rex <i>the</i> dog")
    assert list(service.library.find()) == ["rex-i-the-i-dog"]
    expect(page.get_by_role("button", name="Draw with it")).to_be_visible()
    assert problems == []
    page.close()


def test_a_late_look_at_one_training_leaves_the_choice_and_the_button_of_another(
    service: StudioService, photos: list[str]
) -> None:
    """A look at the first was asked for before the second was put in line, and answers last."""
    with gradio.Blocks(analytics_enabled=False):
        view = train.View(service)
    settings = {"max_train_steps": 5000, "validation_steps": 0}
    first, second, third = (
        service.training_queue.submit(TrainingForm([Path(photos[0])], name, "dog", "quick", settings))
        for name in ("first", "second", "third")
    )
    of_second = view.news(second, None, train.Seen())
    assert [view.news(job, None, train.Seen())[view.sooner].visible for job in (first, second, third)] == [
        False, False, True
    ]  # fmt: skip
    assert of_second[view.line].value == second.number
    assert of_second[view.stop].value == "Take out of the line"
    late = view.look(first.number, of_second[view.seen])
    assert {view.status, view.stop, view.curve, *view.previews.outputs, view.log}.isdisjoint(late)
    assert "value" not in getattr(late.get(view.line), "constructor_args", {})
    assert view.look(second.number, late[view.seen])[view.stop].value == "Take out of the line"
    assert view.choose(first.number, late[view.seen])[view.stop].value == "Stop and keep what it has"


def test_a_script_trains_and_asks_how_far_it_is(address: str, service: StudioService, photos: list[str]) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    try:
        settings = {"max_train_steps": 2, "train_batch_size": 1, "validation_steps": 0}
        files = [handle_file(path) for path in photos[:2]]
        job = client.predict(files, "rex", "dog", "quick", settings, api_name="/train")
        assert (job["name"], job["total"], job["trigger"]) == ("rex", 2, "sks dog")
        found = service.training_queue.find(job["number"])
        assert found is not None
        while not found.over:
            found.stop.wait(0.05)
        (status,) = client.predict(api_name="/status")
        assert (status["state"], status["step"], status["error"]) == ("done", 2, "")
        with pytest.raises(Exception, match="there is a subject 'rex' in the library already"):
            client.predict(files, "rex", "dog", "quick", {}, api_name="/train")
    finally:
        client.close()
