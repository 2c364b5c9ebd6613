"""The page is served before what draws is imported, and says what it waits for."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService
from coeff_diffusion.ui import PageConfig
from coeff_diffusion.ui.page import build
from coeff_diffusion.ui.server import serve
from coeff_diffusion.ui.waiting import Waiting

LATER = ("torch", "diffusers", "transformers", "accelerate")
# What is seen of the page while the base would be loaded, which then fails, in a process of its own.
RUN = """
import json, sys, urllib.error, urllib.request
stubs = []
sys.addaudithook(lambda event, args: stubs.append(args[0]) if event == "open" and str(args[0])[-4:] == ".pyi" else None)
from coeff_diffusion.ui import PageConfig, launch

seen = {"stubs": stubs}

def ask(path):
    try:
        with urllib.request.urlopen(seen["address"] + path, timeout=60) as answer:
            return answer.status, dict(answer.headers), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): text for name, text in error.headers.items()}, error.read().decode()

def look(config, waiting, address):
    seen.update(imported=[name for name in sys.argv[1:] if name in sys.modules], address=address)
    waiting.doing = "Loading <this> ..."
    seen.update({path: ask(path) for path in ("", "config", "gradio_api/info", "gradio_api/file=/etc/passwd")})
    raise ValueError("no base")

launch._loaded = look
try:
    launch.open_page(PageConfig(port=0), block=False)
except ValueError as error:
    seen["error"] = str(error)
try:
    ask("")
except urllib.error.URLError:
    seen["closed"] = True
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen() -> Any:
    done = subprocess.run([sys.executable, "-c", RUN, *LATER], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_it_is_served_before_what_draws_is_imported(seen: Any) -> None:
    assert seen["imported"] == []


def test_gradio_writes_no_stubs(seen: Any) -> None:
    assert seen["stubs"] == []


def test_it_says_what_it_waits_for(seen: Any) -> None:
    status, headers, text = seen[""]
    assert status == 503
    assert headers["retry-after"] == "1"
    assert "frame-ancestors" in headers["content-security-policy"]
    assert '<p id="doing" role="status">Loading &lt;this&gt; ...</p>' in text


def test_programs_do_not_take_it_for_an_empty_page(seen: Any) -> None:
    assert [seen[path][0] for path in ("config", "gradio_api/info", "gradio_api/file=/etc/passwd")] == [503, 503, 403]


def test_without_a_base_the_page_is_closed(seen: Any) -> None:
    assert seen["error"] == "no base"
    assert seen["closed"]


@pytest.mark.browser
def test_a_browser_that_waits_gets_the_page(browser: Any, service: StudioService) -> None:
    waiting, blocks = Waiting(), build(service)
    waiting.doing = "Loading one thing ..."
    page = browser.new_page()
    page.goto(serve(blocks, PageConfig(port=0), [], waiting))
    page.get_by_role("status").get_by_text("Loading one thing ...").wait_for()
    waiting.doing = "Loading another ..."
    page.get_by_role("status").get_by_text("Loading another ...").wait_for()
    waiting.over = True
    page.locator("#draw-button").wait_for()
    page.close()
    blocks.close()
