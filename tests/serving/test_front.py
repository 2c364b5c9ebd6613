"""What strangers may send over HTTP, and what they are answered."""

import asyncio
import base64
import io
import json
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

starlette = pytest.importorskip("starlette")

from diffusers import StableDiffusionPipeline  # noqa: E402
from PIL import Image  # noqa: E402
from starlette.requests import Request  # noqa: E402

from coeff_diffusion import Coefficients  # noqa: E402
from coeff_diffusion.images.drawing_settings import DrawRequest  # noqa: E402
from coeff_diffusion.images.files import find_drawing  # noqa: E402
from coeff_diffusion.inference.studio import Studio  # noqa: E402
from coeff_diffusion.serving.answers import MAX_BODY, Answer  # noqa: E402
from coeff_diffusion.serving.config import ServeConfig, ServeError, check, read_tokens  # noqa: E402
from coeff_diffusion.serving.front import Front, OverloadedError  # noqa: E402
from coeff_diffusion.serving.on_ray import list_subjects  # noqa: E402
from coeff_diffusion.serving.shared_batches import SharedBatches  # noqa: E402
from coeff_diffusion.sources.library import Library  # noqa: E402

JSON = {"content-type": "application/json"}
TOKEN = "a-token-of-24-characters"


class Client:
    """Sends requests to a front as a server does, and gives back (status, headers, JSON)."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def __call__(
        self, method: str, path: str, body: bytes | Any = b"", headers: dict[str, str] | None = None, size: int = 1_000
    ) -> tuple[int, dict[str, str], Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        parts = [data[start : start + size] for start in range(0, len(data), size)] or [b""]
        messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        messages.append({"type": "http.request", "body": b"", "more_body": False})
        coming = iter(messages)

        async def receive() -> Any:
            return next(coming)

        given = [(name.encode(), value.encode()) for name, value in (JSON if headers is None else headers).items()]
        scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": given}
        response = asyncio.run(self.front(Request(scope, receive)))
        return response.status_code, dict(response.headers), json.loads(bytes(response.body))


def front(batches: SharedBatches | None = None, library: Library | None = None, **options: Any) -> Front:
    async def draw(request: DrawRequest) -> Answer:
        assert batches is not None
        return Answer.of(batches.draw([request])[0])

    async def subjects() -> list[dict[str, Any]]:
        assert library is not None
        return list_subjects(library)

    async def health() -> tuple[bool, dict[str, Any]]:
        return True, {"status": "ok"}

    return Front(**{"draw": draw, "subjects": subjects, "health": health, **options})


@pytest.fixture
def client(tiny_pipe: StableDiffusionPipeline, new_subject: Callable[..., Coefficients], tmp_path: Path) -> Client:
    new_subject("rex", "rex dog", 1, class_word="dog").save(tmp_path / "rex.safetensors")
    (tmp_path / "broken.safetensors").touch()
    library = Library(tmp_path)
    return Client(front(SharedBatches(Studio(tiny_pipe), library), library))


def test_draws(client: Client) -> None:
    settings = {"seed": 7, "steps": 2, "batch_size": 2, "layers": {"self_attention": 0.5}}
    asked = {"prompt": "a rex dog", "subjects": {"rex": 0.5}, "settings": settings}
    status, _, answer = client("POST", "/draw", asked)
    assert (status, answer["seed"], answer["notes"]) == (200, 7, [])
    pictures = [base64.b64decode(one) for one in answer["pictures"]]
    assert [Image.open(io.BytesIO(one)).size for one in pictures] == [(16, 16)] * 2
    told = [find_drawing(one) for one in pictures]
    assert [one.seed for one in told if one] == [7, 8]
    assert told[0] is not None
    assert (told[0].prompt, told[0].subjects) == ("a rex dog", {"rex": 0.5})
    assert [f"Seed: {seed}" in text for seed, text in zip((7, 8), answer["parameters"], strict=True)] == [True, True]
    assert client("POST", "/draw", asked)[2] == answer


def test_lists_and_tells(client: Client) -> None:
    assert client("GET", "/health")[::2] == (200, {"status": "ok"})
    assert client("GET", "/subjects")[2] == [
        {"name": "broken", "problem": "its file cannot be read"},
        {"name": "rex", "trigger": "rex dog", "class_word": "dog", "problem": ""},
    ]


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"{", 400, "the body is no JSON"),
        (b"\xff", 400, "the body is no JSON"),
        (b"[" * 50_000, 400, "the body is no JSON"),
        ([1], 400, "the body is [1], expected prompt, subjects, settings by name"),
        ({"promt": "a dog"}, 400, "nothing is called 'promt'; there are prompt, subjects, settings"),
        ({"prompt": 7}, 400, "prompt is 7, expected a text"),
        ({"prompt": "a", "subjects": {"cat": 1}}, 404, "there is no subject 'cat'"),
        ({"prompt": "a", "subjects": {"../rex": 1}}, 404, "there is no subject '../rex'"),
        ({"prompt": "a", "subjects": {"rex": "1"}}, 400, "the strength of 'rex' is '1', expected a number"),
        (b'{"prompt": "a", "subjects": {"rex": NaN}}', 400, "strength of subject 'rex' is nan"),
        ({"prompt": "a", "subjects": {"rex": 10**400}}, 400, "the strength of 'rex' is 1000"),
        ({"prompt": "a", "settings": {"layers": {"up": 10**400}}}, 400, "up is 1000"),
        ({"prompt": "a", "subjects": {"broken": 1}}, 400, "broken.safetensors"),
        ({"prompt": "a", "settings": {"width": 1 << 40}}, 400, "width is 1099511627776, expected at most"),
        ({"prompt": "a", "settings": {"batch_size": 5}}, 400, "batch_size is 5, expected at most 4"),
        ({"prompt": "a", "settings": {"seed": -1}}, 400, "seed is -1, expected 0 to"),
        ({"prompt": "a", "settings": {"x" * 5_000: 1}}, 400, "there is no setting 'xxx"),
        ({"prompt": "\ud800"}, 400, "prompt is"),
        ({"prompt": "a" * MAX_BODY}, 413, "at most 65,536 bytes"),
    ],
)
def test_what_cannot_be_drawn_is_said(client: Client, body: Any, status: int, sentence: str) -> None:
    found, _, answer = client("POST", "/draw", body)
    assert (found, list(answer)) == (status, ["error"])
    assert sentence in answer["error"]
    assert len(answer["error"]) < 500
    assert "/" not in answer["error"].replace("../rex", "").replace("; /subjects lists", "")  # no place on this machine


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 404),
        ("POST", "/drawing", JSON, 404),
        ("GET", "/draw", {}, 405),
        ("POST", "/health", JSON, 405),
        ("POST", "/draw", {}, 415),
        ("POST", "/draw", {"content-type": "text/plain"}, 415),
        ("POST", "/draw", {"content-type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_doors(client: Client, method: str, path: str, headers: dict[str, str], status: int) -> None:
    found, given, _ = client(method, path, {"prompt": "a dog", "settings": {"steps": 1}}, headers)
    assert found == status
    assert ("allow" in given) == (status == 405)


def test_who_may_ask() -> None:
    async def draw(request: DrawRequest) -> Answer:
        return Answer([b"png"], 1, ["a"])

    client = Client(front(draw=draw, tokens=(TOKEN, "another-one-of-24-letter")))

    def status(path: str, token: str) -> int:
        headers = {**JSON, **({"authorization": token} if token else {})}
        return client("POST" if path == "/draw" else "GET", path, {"prompt": "a"}, headers)[0]

    assert [status("/draw", given) for given in ("", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN}")] == [
        401,
        401,
        401,
        200,
    ]
    assert status("/subjects", "") == 401
    assert status("/health", "") == 200


def test_too_many_are_sent_away() -> None:
    async def full(request: DrawRequest) -> Answer:
        raise OverloadedError

    status, headers, answer = Client(front(draw=full, seconds=2.5))("POST", "/draw", {"prompt": "a dog"})
    assert (status, headers["retry-after"]) == (503, "3")
    assert answer == {"error": "too many requests wait already; try again in 3 s"}


def test_what_fails_here_is_not_the_users_doing() -> None:
    answer = Answer.of(ValueError("disk"))
    assert (answer.status, answer.to_json()) == (HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "disk"})


def test_flags(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"{TOKEN}\n\n  another-one-of-24-letter \n")
    assert read_tokens(ServeConfig(tokens=str(file), listen=True)) == (TOKEN, "another-one-of-24-letter")
    assert read_tokens(ServeConfig()) == ()
    with pytest.raises(ServeError, match="--listen lets others draw on this machine; add --tokens"):
        read_tokens(ServeConfig(listen=True))
    file.write_text("secret")
    with pytest.raises(ServeError, match="has to hold tokens of 16 characters or more") as refused:
        read_tokens(ServeConfig(tokens=str(file)))
    assert "secret" not in str(refused.value)
    with pytest.raises(ServeError, match="--replicas is 0, expected at least 1; --batch_wait is nan.*--port is 70000"):
        check(ServeConfig(replicas=0, batch_wait=float("nan"), port=70000))


def test_watchers_ask_for_the_head_alone_and_schemes_have_any_case() -> None:
    asked = Client(front(tokens=(TOKEN,), library=Library("nowhere")))
    assert asked("HEAD", "/health")[0] == HTTPStatus.OK
    assert asked("HEAD", "/draw")[0] == HTTPStatus.METHOD_NOT_ALLOWED
    for scheme in ("Bearer", "bearer", "BEARER "):
        assert asked("GET", "/subjects", headers={"authorization": f"{scheme} {TOKEN}"})[0] == HTTPStatus.OK
    assert asked("GET", "/subjects", headers={"authorization": f"Basic {TOKEN}"})[0] == HTTPStatus.UNAUTHORIZED
