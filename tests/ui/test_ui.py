import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

gradio = pytest.importorskip("gradio")

from coeff_diffusion.inference.request import DrawCancelled, DrawRequest, StudioError  # noqa: E402
from coeff_diffusion.service import StudioService  # noqa: E402
from coeff_diffusion.subject.errors import CoefficientsError  # noqa: E402
from coeff_diffusion.ui import PageConfig, PageError  # noqa: E402
from coeff_diffusion.ui.config import check, read_auth  # noqa: E402
from coeff_diffusion.ui.page import build  # noqa: E402
from coeff_diffusion.ui.server import serve  # noqa: E402

REQUEST = DrawRequest("a sks dog on grass", seed=1, steps=1)


@pytest.fixture
def page(service: StudioService) -> Iterator[str]:
    """The address of a running page."""
    blocks = build(service)
    yield serve(blocks, PageConfig(port=0), [])
    blocks.close()


def get(url: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def test_two_files_of_one_trigger_take_turns(service: StudioService) -> None:
    for name in ("dog", "other-dog", "dog"):
        service.drawings.draw(DrawRequest("a sks dog", subjects={name: 1.0}, seed=1, steps=1))
        assert list(service.studio.subjects) == [name]


def test_a_file_written_again_is_read_again(service: StudioService) -> None:
    request = DrawRequest("a sks dog", subjects={"dog": 1.0}, seed=1, steps=2)
    before = service.drawings.draw(request, compare=False).pictures[0].image
    (service.library.folder / "other-dog.safetensors").replace(service.library.folder / "dog.safetensors")
    after = service.drawings.draw(request, compare=False).pictures[0].image
    assert before.tobytes() != after.tobytes()


def test_service_refuses_in_words(service: StudioService) -> None:
    with pytest.raises(CoefficientsError, match="no subject 'cat' in .*; there is 'dog', 'other-dog'"):
        service.drawings.draw(DrawRequest("a cat", subjects={"cat": 1.0}))
    with pytest.raises(StudioError, match="steps is 0"):
        service.drawings.draw(DrawRequest("a cat", steps=0))
    with pytest.raises(DrawCancelled):
        service.drawings.draw(REQUEST, should_stop=lambda: True)
    assert service.drawings.describe("dog") == "dog: write “sks dog”"


def test_only_what_scripts_call_has_a_name(page: str) -> None:
    info = json.loads(get(f"{page}gradio_api/info")[1])
    assert set(info["named_endpoints"]) == {"/base", "/draw", "/train", "/status", "/stop", "/subjects"}
    assert info["unnamed_endpoints"] == {}


def test_page_serves_nothing_else(page: str, service: StudioService) -> None:
    secret = service.library.folder / "dog.safetensors"
    for path in (secret, Path("/etc/passwd"), Path(__file__), f"{service.output_dir}/../subjects/dog.safetensors"):
        assert get(f"{page}gradio_api/file={path}")[0] in (403, 404)


def test_page_answers_others_while_it_draws(page: str, service: StudioService) -> None:
    drawing, done = threading.Event(), threading.Event()

    def slow(step: object) -> None:
        drawing.set()
        assert done.wait(10)

    thread = threading.Thread(target=service.drawings.draw, args=(REQUEST, False, slow))
    thread.start()
    try:
        assert drawing.wait(10)
        assert get(page)[0] == 200
    finally:
        done.set()
        thread.join()


def test_page_with_users_lets_nobody_else_in(service: StudioService) -> None:
    blocks = build(service)
    try:
        address = serve(blocks, PageConfig(port=0), [("ann", "secret")])
        assert get(f"{address}gradio_api/info")[0] == 401
        assert get(f"{address}config")[0] == 401
    finally:
        blocks.close()


def test_opening_stays_on_this_machine(service: StudioService, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    look_up = socket.getaddrinfo

    def watched(host: str, *arguments: Any, **options: Any) -> Any:
        asked.add(host)
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    blocks = build(service)
    try:
        assert serve(blocks, PageConfig(port=0), []).startswith("http://127.0.0.1:")
    finally:
        blocks.close()
    assert asked <= {"127.0.0.1", "localhost"}


def test_a_taken_port_is_said(page: str, service: StudioService) -> None:
    port = int(page.rstrip("/").rpartition(":")[2])
    with pytest.raises(PageError, match=f"port {port} cannot be used"):
        serve(build(service), PageConfig(port=port), [])


def test_who_may_reach_the_page(tmp_path: Path) -> None:
    assert check(PageConfig()) == []
    assert check(PageConfig(listen=True, auth="ann:a:b")) == [("ann", "a:b")]
    users = tmp_path / "users"
    users.write_text("ann:secret\n\nbob:word\n")
    assert check(PageConfig(share=True, auth=str(users))) == [("ann", "secret"), ("bob", "word")]
    users.write_text("\n")
    with pytest.raises(PageError, match="names no user"):
        read_auth(str(users))
    for wrong in ("secret", ":secret", "ann:"):
        with pytest.raises(PageError, match="--auth wants user:password") as error:
            read_auth(wrong)
        assert "secret" not in str(error.value)
    with pytest.raises(PageError, match="--share and --listen lets others draw"):
        check(PageConfig(share=True, listen=True))
    with pytest.raises(PageError, match="--port is 70000"):
        check(PageConfig(port=70000))
