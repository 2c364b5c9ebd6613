"""What strangers may try at the page: each is refused, and said in a sentence where someone reads it."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

gradio = pytest.importorskip("gradio")

from coeff_diffusion.service import StudioService, TrainingForm  # noqa: E402
from coeff_diffusion.subject.errors import CoefficientsError  # noqa: E402
from coeff_diffusion.training.config import ConfigError  # noqa: E402
from coeff_diffusion.ui import PageConfig  # noqa: E402
from coeff_diffusion.ui.guard import Names  # noqa: E402
from coeff_diffusion.ui.own_folder import own_folder  # noqa: E402
from coeff_diffusion.ui.page import build  # noqa: E402
from coeff_diffusion.ui.server import QUEUE_LENGTH, names_of, serve  # noqa: E402

BOUNDARY = "end-of-part"


@pytest.fixture
def page(service: StudioService) -> Iterator[str]:
    blocks = build(service)
    yield serve(blocks, PageConfig(port=0), [])
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


@pytest.mark.parametrize(
    ("host", "names", "known"),
    [
        ("127.0.0.1:7860", Names(), True),
        ("localhost", Names(), True),
        ("[::1]:7860", Names(), True),
        ("evil.example", Names(), False),
        ("evil.example:7860", Names(listen=True), False),
        ("127.0.0.1.evil.example", Names(listen=True, share=True), False),
        ("192.168.1.7:7860", Names(), False),
        ("192.168.1.7:7860", Names(listen=True), True),
        (f"{socket.gethostname()}:7860", Names(listen=True), True),
        ("abc.gradio.live", Names(), False),
        ("abc.gradio.live", Names(share=True), True),
        ("Studio.Example:443", names_of(PageConfig(host_names="studio.example, other")), True),
        ("", names_of(PageConfig(listen=True)), False),
    ],
)
def test_by_what_name_the_page_is_asked_for(host: str, names: Names, known: bool) -> None:
    assert names.know(host) is known


def test_another_name_gets_nothing_and_no_frame_shows_the_page(page: str) -> None:
    port = int(page.rstrip("/").rpartition(":")[2])
    for path, host, expected in (
        ("/", "evil.example", 421),
        ("/config", f"evil.example:{port}", 421),
        ("/", None, 200),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert (answer.status, b"--host_names" in body) == (expected, host is not None)
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        policy = answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'self'" in policy
        assert "default-src 'self'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_an_upload_that_is_too_large_is_refused(page: str) -> None:
    assert upload(page, "small.png", b"x" * 1000)[0] == 200
    status, answer = upload(page, "large.png", b"x" * (26 * 2**20))
    assert status in (400, 413, 500)
    assert b"path" not in answer.lower() or b"exceed" in answer.lower()


def test_no_name_of_an_upload_becomes_a_path(page: str, service: StudioService) -> None:
    for name in ("../../../escaped.png", "/etc/escaped.png", "..\\escaped.png", "a" * 9_000 + ".png"):
        status, answer = upload(page, name, b"x")
        if status == 200:
            (path,) = json.loads(answer)
            assert Path(path).resolve().is_relative_to(Path(gradio.utils.get_upload_folder()).resolve()), name
            assert ".." not in Path(path).parts
            assert len(Path(path).name) < 256
    assert not Path("/etc/escaped.png").exists()
    assert not list(service.library.folder.parent.rglob("*escaped*"))


# What `{}` stands for: a file that lies in the working folder, beside the temporary one, or in the library.
ROUTES = [
    "file={}",
    "file/{}",
    "file=../../../../../../../../..{}",
    "file=%2e%2e%2f%2e%2e{}",
    "file={folder}/../..{}",
    "file={folder}/%2e%2e/%2e%2e{}",
    "file=file://{}",
    "file=FILE://{}",
    "file=file:{}",
    "file=%00{}",
    "file={}%00.png",
    "file=~root/.bashrc",
    "file=C:/Windows/win.ini",
    "file=\\\\127.0.0.1\\share",
    "file=",
    "file=.",
    "file={folder}",
]


def test_files_that_are_none_of_the_pages_are_not_served(
    service: StudioService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cached = tmp_path / ".gradio" / "cached_examples" / "another-program.txt"  # gradio by itself hands these out
    cached.parent.mkdir(parents=True)
    cached.write_text("root:")
    links = [own_folder() / "link", own_folder() / "links"]
    links[0].symlink_to("/etc/passwd")
    links[1].symlink_to("/etc")
    files = ["/etc/passwd", __file__, str(service.library.folder / "dog.safetensors"), str(cached)]
    routes = [route.format(file, folder=own_folder()) for route in ROUTES for file in files]
    routes += [f"file={links[0]}", f"file={links[1]}/passwd"]
    blocks = build(service)
    try:
        page = serve(blocks, PageConfig(port=0), [])
        answers = {route: ask(f"{page}gradio_api/{route}") for route in routes}
    finally:
        blocks.close()
        for link in links:
            link.unlink()
    assert {route: status for route, (status, _) in answers.items() if status not in (400, 403, 404)} == {}
    assert not any(b"root:" in answer for _, answer in answers.values())


@pytest.fixture
def witness() -> Iterator[tuple[str, list[str]]]:
    """A server that nobody but this machine reaches, and what it was asked for."""
    asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"inside")

        do_HEAD = do_POST = do_GET  # noqa: N815 - the names are http.server's

        def log_message(self, *arguments: object) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


ELSEWHERE = [
    "file=http://{}/x.png",
    "file=https://{}/x.png",
    "file=HTTP://{}/x.png",
    "file=//{}/x.png",
    "file/http://{}/x.png",
    "file=%20http://{}/x.png",
    "file=http:%2f%2f{}%2fx.png",
    "proxy=http://{}/x.png",
    "proxy=https://huggingface.co.{}/x.png",
    "file=https://example.com/x.png",
    "file=https://huggingface.co/x.png",
    "file=http://169.254.169.254/latest/meta-data",
    "file=http://user@example.com/",
    "file=ftp://example.com/x",
    "file=javascript:alert(1)",
    "file=data:text/html,hello",
    "run-history/buckets",
    "runs",
    "vibe-code",
]


def test_no_address_leads_elsewhere(page: str, witness: tuple[str, list[str]]) -> None:
    """Neither is the visitor sent on, nor does the page fetch for him what he cannot reach."""
    host, asked = witness
    connection = http.client.HTTPConnection(page.split("/")[2], timeout=30)
    wrong = []
    for route, method in product(ELSEWHERE, ("GET", "HEAD")):
        connection.request(method, f"/gradio_api/{route.format(host)}")
        answer = connection.getresponse()
        refused = answer.status in (403, 404, 405) and answer.getheader("location") is None
        if answer.read() == b"inside" or not refused:
            wrong.append((method, route, answer.status))
    connection.close()
    assert wrong == []
    assert asked == []


def test_a_file_that_was_not_uploaded_is_not_read(page: str, witness: tuple[str, list[str]]) -> None:
    """As a script that says its picture is there could ask for it."""
    host, asked = witness
    places = ["http://{}/x.png", "file:///etc/passwd", "/etc/passwd", "{folder}/../../etc/passwd", "{folder}"]
    for place in places:
        picture = {"path": place.format(host, folder=own_folder()), "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [[picture], "rex", "dog", "quick", {"max_train_steps": 1}]}).encode()
        status, answer = ask(f"{page}gradio_api/call/train", body)
        assert status == 200
        event = json.loads(answer)["event_id"]
        assert b"event: error" in ask(f"{page}gradio_api/call/train/{event}")[1], place
    assert asked == []


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
    body = json.dumps({"data": ["a dog", None, {"steps": 1}, False, *[None] * 6]}).encode()
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
