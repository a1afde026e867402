"""The last event of a stream whose replica is lost, in the form of the endpoint that the stream is of."""

import json
import re
from typing import Any

from server.api.errors import ApiError
from server.api.messages.errors import PREFIX as MESSAGES
from server.api.messages.errors import anthropic_error

RESPONSES = "/v1/responses"
NUMBER = re.compile(rb'^data: \{"type":"[a-z_.]+","sequence_number":(\d+)', re.MULTILINE)


def last_event(path: str, error: ApiError, number: int) -> bytes:
    """One event; those of responses have numbers, of which `number` is the next."""
    body = error.body.model_dump()
    if path.startswith(MESSAGES):
        return event("error", anthropic_error(error.status, str(error)))
    if path == RESPONSES:
        return event("error", {"type": "error", "sequence_number": number, **body["error"], **body})
    return f"data: {json.dumps(body)}\n\n".encode()


def event(name: str, fields: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(fields)}\n\n".encode()


def numbered(data: bytes) -> int | None:
    """The number of the last event in a piece of a stream, where its events have numbers."""
    found = NUMBER.findall(data)
    return int(found[-1]) if found else None
