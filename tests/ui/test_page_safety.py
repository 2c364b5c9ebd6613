"""What strangers may try at the page: each is refused, and said in a sentence where someone reads it."""

import contextlib
import json
import struct
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService, TrainingForm  # noqa: E402
from coeff_diffusion.subject.errors import CoefficientsError  # noqa: E402
from coeff_diffusion.training.config import ConfigError  # noqa: E402
from coeff_diffusion.ui import PageConfig  # noqa: E402
from coeff_diffusion.ui.page import QUEUE_LENGTH, build, launch  # noqa: E402

BOUNDARY = "end-of-part"


@pytest.fixture
def page(service: StudioService) -> Iterator[str]:
    blocks = build(service)
    yield launch(blocks, PageConfig(port=0), [], block=False)
    blocks.close()


def ask(url: str, body: bytes | None = None, kind: str = "application/json") -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": kind} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def upload(page: str, name: str, content: bytes) -> tuple[int, bytes]:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return ask(f"{page}gradio_api/upload", body, f"multipart/form-data; boundary={BOUNDARY}")


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few bytes that says it has billions of pixels."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"")),
        (b"IEND", b""),
    ]
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_an_upload_that_is_too_large_is_refused(page: str) -> None:
    assert upload(page, "small.png", b"x" * 1000)[0] == 200
    status, answer = upload(page, "large.png", b"x" * (26 * 2**20))
    assert status in (400, 413, 500)
    assert b"path" not in answer.lower() or b"exceed" in answer.lower()


@pytest.mark.parametrize("name", ["../../../escaped.png", "/etc/escaped.png", "..\\escaped.png", "a" * 9_000 + ".png"])
def test_no_name_of_an_upload_becomes_a_path(page: str, name: str, service: StudioService) -> None:
    status, answer = upload(page, name, b"x")
    if status == 200:
        (path,) = json.loads(answer)
        assert Path(path).resolve().is_relative_to(Path(gradio.utils.get_upload_folder()).resolve())
        assert ".." not in Path(path).parts
        assert len(Path(path).name) < 256
    assert not Path("/etc/escaped.png").exists()
    assert not list(service.library.folder.parent.rglob("*escaped*"))


@pytest.mark.parametrize(
    "route", ["file=/etc/passwd", "file=../../../etc/passwd", "file=C:/Windows/win.ini", "file=~/.bashrc"]
)
def test_files_that_are_none_of_the_pages_are_not_served(page: str, route: str) -> None:
    assert ask(f"{page}gradio_api/{route}")[0] in (400, 403, 404)


def test_a_bomb_is_refused_by_name(service: StudioService, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb())
    with pytest.raises(ConfigError, match="bomb.png"):
        service.training_queue.submit(TrainingForm([path], "boom", "dog"))
    with pytest.raises(CoefficientsError, match="bomb.png"):
        service.drawings.settings_of(path)
    assert Image.MAX_IMAGE_PIXELS is not None
    assert list(service.library.find()) == ["dog", "other-dog"]


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "a/b", ".hidden", "nul\0", "x" * 9_000, "<script>alert(1)</script>"]
)
def test_no_name_of_a_subject_leaves_the_library(
    service: StudioService, subject_images: Path, tmp_path: Path, name: str
) -> None:
    before = {path for path in tmp_path.rglob("*") if subject_images not in path.parents}
    pictures = sorted(subject_images.iterdir())[:1]
    with contextlib.suppress(ConfigError):
        job = service.training_queue.submit(TrainingForm(pictures, name, "dog", settings={"max_train_steps": 1}))
        service.training_queue.stop(job.number)
        assert job.folder.resolve().parent == service.library.folder.resolve()
    service.close()
    new = {path for path in tmp_path.rglob("*") if subject_images not in path.parents} - before
    assert all(path.is_relative_to(service.library.folder) for path in new)


def test_more_than_can_wait_are_told_that_the_page_is_busy(page: str, service: StudioService) -> None:
    body = json.dumps({"data": ["a dog", None, {"steps": 1}, False]}).encode()
    with service.studio.exclusive():  # nothing is drawn meanwhile
        answers = [ask(f"{page}gradio_api/call/draw", body) for _ in range(QUEUE_LENGTH + 3)]
    refused = [answer for status, answer in answers if status != 200]
    assert 1 <= len(refused) <= 3
    assert all(b"queue is full" in answer.lower() for answer in refused)


def test_markup_in_a_prompt_stays_text(service: StudioService) -> None:
    from coeff_diffusion.ui.common import status_line

    shown: Any = status_line("<script>alert(1)</script> & <b>bold</b>")
    assert "<script>" not in shown
    assert "<b>" not in shown
