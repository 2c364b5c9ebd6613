"""Pictures of the page for the docs: every tab, as it looks on a desktop (light, dark) and on a phone.

    make demo && python tools/screenshots.py            # shows the subject that the demo has trained

Needs Playwright and a Chromium (`CHROMIUM` gives its path). Writes `docs/images/page-<tab>-<look>.webp`.
"""

import argparse
import io
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browsing import FLAGS, find_chromium  # noqa: E402
from playwright.sync_api import sync_playwright  # noqa: E402

from coeff_diffusion.ui import PageConfig, open_page  # noqa: E402

LOOKS = {"light": (1280, 860), "dark": (1280, 860), "phone": (390, 844)}
WAIT = 90_000


def open_tab(page: Any, tab: str) -> None:
    """On a phone the last tabs are behind a button."""
    page.locator("#draw-button").wait_for(timeout=WAIT)
    page.wait_for_timeout(1000)
    found = page.get_by_role("tab", name=tab, exact=True)
    if not found.first.is_visible():
        page.locator(".overflow-menu > button").first.click()
        found = page.locator(".overflow-dropdown button").filter(has_text=tab)
    found.first.click()
    page.wait_for_timeout(1000)


def fill(page: Any, name: str, text: str) -> None:
    page.locator(f"#{name} textarea, #{name} input").first.fill(text)


def pick(page: Any, name: str, option: str | None = None) -> None:
    """Choose from a dropdown; the first entry where none is named."""
    page.locator(f"#{name} input").first.click()
    entry = page.get_by_role("option", name=option) if option else page.get_by_role("option")
    entry.first.click()


def show_draw(page: Any, subject: str, trigger: str) -> None:
    pick(page, "draw-subject-1", subject)
    page.wait_for_timeout(1500)  # until the page has written a prompt to begin with
    fill(page, "draw-prompt", f"a {trigger} on a beach")
    page.locator("#draw-compare input").check()
    page.locator("#draw-button").click()
    page.locator("#draw-status").get_by_text(".png").first.wait_for(timeout=WAIT)


def show_explore(page: Any, subject: str, trigger: str) -> None:
    pick(page, "explore-subjects", subject)
    page.keyboard.press("Escape")
    page.wait_for_timeout(1500)
    fill(page, "explore-prompt", f"a {trigger} on grass")
    page.locator("#explore-button").click()
    page.locator("#explore-sheet img").first.wait_for(timeout=WAIT)
    page.locator("#explore-cells img").first.wait_for(timeout=WAIT)


def show_train(page: Any, subject: str, trigger: str) -> None:
    if page.locator("#train-previews img").count():  # trained for an earlier look
        return
    pictures = sorted((ROOT / "examples" / "subjects" / "penguin").glob("*.png"))
    page.locator("#train-pictures input[type=file]").set_input_files([str(path) for path in pictures])
    fill(page, "train-name", "my penguin")
    fill(page, "train-class-word", "bird")
    page.locator("#train-crops img").first.wait_for(timeout=WAIT)
    page.get_by_role("button", name="Start training").click()
    page.locator("#train-earlier img").first.wait_for(timeout=WAIT)  # the latest preview is no longer that of step 0


def show_timeline(page: Any, subject: str, trigger: str) -> None:
    run = page.locator("#timeline-run input").first
    run.wait_for(timeout=WAIT)
    if run.input_value() != subject:
        pick(page, "timeline-run", subject)
    page.locator("#timeline-picture img").first.wait_for(timeout=WAIT)


def show_library(page: Any, subject: str, trigger: str) -> None:
    page.locator("#library-cards img").first.wait_for(timeout=WAIT)
    page.locator("#library-cards button.thumbnail-item, #library-cards .grid-wrap button").first.click()
    page.locator("#library-facts").get_by_text(trigger).first.wait_for(timeout=WAIT)


def show_inspect(page: Any, subject: str, trigger: str) -> None:
    pick(page, "inspect-subject", subject)
    page.locator("#inspect-about").get_by_text("called up by").wait_for(timeout=WAIT)  # and a prompt is suggested
    fill(page, "inspect-prompt", f"a {trigger} on grass")
    fill(page, "inspect-word", trigger)
    page.locator("#inspect-button").click()
    page.get_by_role("img").nth(1).wait_for(timeout=WAIT)
    page.wait_for_timeout(4000)
    page.locator("#inspect-head-button").click()
    page.locator("#inspect-head-status").get_by_text("Without it").wait_for(timeout=WAIT)


TABS: dict[str, Callable[[Any, str, str], None]] = {
    "Draw": show_draw,
    "Explore": show_explore,
    "Train": show_train,
    "Timeline": show_timeline,
    "Library": show_library,
    "Inspect": show_inspect,
}


def take(page: Any, file: Path, full: bool) -> None:
    page.wait_for_timeout(1000)  # for what fades in
    Image.open(io.BytesIO(page.screenshot(full_page=full))).convert("RGB").save(file, quality=82, method=6)
    print(f"{file} ({file.stat().st_size / 1024:.0f} KB)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subjects_dir", type=Path, default=ROOT / "outputs", help="with the subject to show")
    parser.add_argument("--subject", default="cat")
    parser.add_argument("--trigger", default="sks cat")
    parser.add_argument("--tabs", nargs="+", choices=list(TABS), default=list(TABS))
    parser.add_argument("--looks", nargs="+", choices=list(LOOKS), default=list(LOOKS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        library = Path(folder) / "subjects"  # a copy: the page may write into its own
        shutil.copytree(args.subjects_dir / args.subject, library / args.subject)
        address = open_page(PageConfig(subjects_dir=str(library), output_dir=f"{folder}/pictures", port=0), block=False)
        browser = driver.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        for tab in args.tabs:
            for look in args.looks:
                width, height = LOOKS[look]
                page = browser.new_page(viewport={"width": width, "height": height})
                page.goto(f"{address}?__theme={'dark' if look == 'dark' else 'light'}")
                open_tab(page, tab)
                TABS[tab](page, args.subject, args.trigger)
                # On a phone one screen says enough, but for Train, where what happens is below what is asked.
                full = look != "phone" or tab == "Train"
                take(page, args.output / f"page-{tab.lower()}-{look}.webp", full)
                if tab == "Train" and look == args.looks[-1] and page.locator("#train-stop").is_enabled():
                    page.locator("#train-stop").click()  # or it would go on when this script is over
                    page.locator("#train-status").get_by_text("is in the library").wait_for(timeout=WAIT)
                page.close()
        browser.close()


if __name__ == "__main__":
    main()
