"""How long people wait for the page: from the command to its answer and to its use, from Draw to the first picture.

    python benchmarks/page_open.py               # medians of 5 starts

Needs Playwright and a Chromium (`CHROMIUM` gives its path). Each start is a fresh process with a fresh library.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright
from timing import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browsing import FLAGS, find_chromium  # type: ignore[import-not-found]  # noqa: E402

from coeff_diffusion.images.files import save_picture  # noqa: E402
from coeff_diffusion.images.generation_info import Parameters, format_parameters  # noqa: E402

WAIT = 120_000  # milliseconds
EARLIER, SHOWN, SIDE = 200, 60, 512


def fill(pictures: Path) -> None:
    """Earlier pictures, of as much detail as drawings have, in the size of Stable Diffusion 1.5's."""
    random = np.random.default_rng(0)
    text = format_parameters(
        Parameters("a cat on grass", steps=20, guidance_scale=7.5, seed=1, width=SIDE, height=SIDE)
    )
    for number in range(EARLIER):
        coarse = Image.fromarray(random.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8))
        save_picture(coarse.resize((SIDE, SIDE)), pictures / f"{number:05d}-1.png", text)


def first_answer(address: str) -> None:
    """Wait until there is any, also that the page is being opened."""
    while True:
        try:
            urlopen(address, timeout=WAIT / 1000).close()
            return
        except HTTPError as error:  # not yet
            error.close()
            return
        except URLError:
            time.sleep(0.02)


def measure(browser: Browser, folder: str) -> tuple[float, ...]:
    """Seconds from the command to a first answer, and to a Draw button that can be pressed; from pressing it to a
    preview, and the picture; from "Earlier pictures", of which there are many, to the first of them all."""
    fill(Path(folder) / "pictures")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    flags = ["--port", port, "--subjects_dir", f"{folder}/subjects", "--output_dir", f"{folder}/pictures"]
    command = [sys.executable, "-m", "coeff_diffusion.cli", "studio", *flags]
    started = time.monotonic()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        try:
            address = f"http://127.0.0.1:{port}/"
            first_answer(address)
            answered = time.monotonic() - started
            page = browser.new_page()
            page.goto(address)
            button = page.locator("#draw-button")
            expect(button).to_be_enabled(timeout=WAIT)
            opened = time.monotonic() - started
            page.locator("#draw-prompt textarea").fill("a cat on grass")
            pressed = time.monotonic()
            button.click()
            page.locator("#draw-gallery img").first.wait_for(timeout=WAIT)
            forming = time.monotonic() - pressed
            page.locator("#draw-status").get_by_text("Saved in").wait_for(timeout=WAIT)
            drawn = time.monotonic() - pressed
            pressed = time.monotonic()
            page.locator("#draw-history > button").click()
            page.locator("#history-cards img").nth(SHOWN - 1).wait_for(timeout=WAIT)
            earlier = time.monotonic() - pressed
            page.close()
        finally:
            server.send_signal(signal.SIGINT)
            server.wait()
    return answered, opened, forming, drawn, earlier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        found = []
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as folder:
                found.append(measure(browser, folder))
        browser.close()
    print(machine())
    for what, seconds in zip(
        (
            "from the command to a first answer",
            "from the command to a page that can be used",
            "from Draw to a first preview",
            "from Draw to the picture",
            f"from a click to the first {SHOWN} of {EARLIER} earlier pictures of {SIDE} pixels",
        ),
        zip(*found, strict=True),
        strict=True,
    ):
        print(f"{what}: {statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
