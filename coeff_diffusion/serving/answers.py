"""What goes over the wire: a JSON body -> a checked request, what was drawn -> a JSON answer."""

import base64
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from ..images.drawing_settings import DrawRequest
from ..images.files import picture_bytes
from ..inference.outside import draw_request
from ..subject.errors import UserError, shown
from .shared_batches import Drawn, UnknownSubjectError

MAX_BODY = 64 * 1024  # bytes of a request: prompts of a page and settings have a few thousand
FIELDS = ("prompt", "subjects", "settings")


class RefusedError(UserError):
    """A request that is not answered with what it asks for.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Answer:
    """What a replica answers; it travels between processes.

    Attributes:
        pictures: PNG files, each with the text of how it was drawn.
        parameters: that text, of each.
        notes: sentences for the user.
        error: why there is none, in a sentence for the user.
        status: of HTTP.
    """

    pictures: list[bytes] = field(default_factory=list)
    seed: int | None = None
    parameters: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str = ""
    status: HTTPStatus = HTTPStatus.OK

    @classmethod
    def of(cls, found: Drawn | Exception) -> "Answer":
        """What became of a request (see `SharedBatches.draw`)."""
        if isinstance(found, Exception):
            status = HTTPStatus.BAD_REQUEST if isinstance(found, UserError) else HTTPStatus.INTERNAL_SERVER_ERROR
            status = HTTPStatus.NOT_FOUND if isinstance(found, UnknownSubjectError) else status
            return cls(error=str(found), status=status)
        drawn = found.pictures
        return cls(
            [picture_bytes(one.image, one.parameters) for one in drawn],
            drawn[0].seed,
            [one.parameters for one in drawn],
            found.notes,
        )

    def to_json(self) -> dict[str, Any]:
        """The body of the answer."""
        if self.error:
            return {"error": self.error}
        pictures = [base64.b64encode(data).decode() for data in self.pictures]
        return {"pictures": pictures, "seed": self.seed, "parameters": self.parameters, "notes": self.notes}


def read_request(body: bytes) -> DrawRequest:
    """What a body asks for: `{"prompt": ..., "subjects": {name: strength}, "settings": {...}}`.

    Raises:
        RefusedError: it is no such JSON. StudioError: see `draw_request`.
    """
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is no JSON: {error}") from error
    if not isinstance(asked, dict):
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"the body is {shown(asked)}, expected {', '.join(FIELDS)} by name")
    if unknown := [name for name in asked if name not in FIELDS]:
        expected = f"there are {', '.join(FIELDS)}"
        raise RefusedError(HTTPStatus.BAD_REQUEST, f"nothing is called {shown(unknown[0])}; {expected}")
    return draw_request(asked.get("prompt", ""), asked.get("subjects"), asked.get("settings"))
