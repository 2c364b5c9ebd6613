"""The door: HTTP requests, from whomever, to what draws. Whatever is wrong with one is answered with JSON."""

import hmac
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..images.drawing_settings import DrawRequest
from ..subject.errors import UserError
from .answers import MAX_BODY, Answer, RefusedError, read_request

ROUTES = {"/draw": "POST", "/subjects": "GET", "/health": "GET"}
JSON = "application/json"


class OverloadedError(Exception):
    """Too many requests wait already."""


@dataclass
class Front:
    """Answers `POST /draw`, `GET /subjects` and `GET /health`.

    Attributes:
        draw: draws a request; raises `OverloadedError`.
        subjects: what the library has, as it is to be listed.
        health: whether pictures can be drawn, and what else is to be said of it.
        tokens: of which one must be given (`Authorization: Bearer ...`), but for `/health`; empty: nobody is asked.
    """

    draw: Callable[[DrawRequest], Awaitable[Answer]]
    subjects: Callable[[], Awaitable[list[dict[str, Any]]]]
    health: Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]
    tokens: Collection[str] = ()
    seconds: float = 1.0  # that the latest drawing took, waiting included

    async def __call__(self, request: Request) -> Response:
        """The answer to one HTTP request."""
        try:
            return await self._answer(request)
        except RefusedError as error:
            allow = {"allow": ROUTES[request.url.path]} if error.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
            return JSONResponse({"error": str(error)}, error.status, allow)
        except UserError as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.BAD_REQUEST)
        except OverloadedError:
            wait = max(1, math.ceil(self.seconds))
            later = f"too many requests wait already; try again in {wait} s"
            return JSONResponse({"error": later}, HTTPStatus.SERVICE_UNAVAILABLE, {"retry-after": str(wait)})

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        if path not in ROUTES:
            raise RefusedError(HTTPStatus.NOT_FOUND, f"there is {', '.join(ROUTES)}")
        if {"HEAD": "GET"}.get(request.method, request.method) != ROUTES[path]:  # the server sends no body then
            raise RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {ROUTES[path]}")
        if path == "/health":
            well, about = await self.health()
            return JSONResponse(about, HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE)
        self._check_token(request)
        if path == "/subjects":
            return JSONResponse(await self.subjects())
        started = time.monotonic()
        answer = await self.draw(read_request(await _body(request)))
        self.seconds = time.monotonic() - started
        return JSONResponse(answer.to_json(), answer.status)

    def _check_token(self, request: Request) -> None:
        given = re.sub(r"(?i)^bearer +", "", request.headers.get("authorization", "").strip()).encode()
        if self.tokens and not any([hmac.compare_digest(given, one.encode()) for one in self.tokens]):  # noqa: C419
            raise RefusedError(HTTPStatus.UNAUTHORIZED, "give a token that is known here: Authorization: Bearer TOKEN")


async def _body(request: Request) -> bytes:
    """What was sent, if it is no longer than a request may be.

    JSON has to be called JSON: pages of others' that a browser has open cannot send that here without being asked.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"expected a body of the type {JSON}")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY:
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"expected a body of at most {MAX_BODY:,} bytes")
    return body
