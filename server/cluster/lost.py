"""The last event of a stream whose replica is lost, in the form of the endpoint that the stream is of."""

import json
import re

from server.api.answers.events import event
from server.api.errors import ApiError
from server.api.messages.errors import PREFIX as MESSAGES
from server.api.messages.errors import anthropic_error

RESPONSES = "/v1/responses"
NUMBER = re.compile(rb'^data: \{"type":"[a-z_.]+","sequence_number":(\d+)', re.MULTILINE)


def last_event(path: str, error: ApiError, number: int) -> str:
    """One event; those of responses have numbers, of which `number` is the next."""
    body = error.body.model_dump()
    if path.startswith(MESSAGES):
        return event(json.dumps(anthropic_error(error.status, str(error))), "error")
    if path == RESPONSES:
        return event(json.dumps({"type": "error", "sequence_number": number, **body["error"], **body}), "error")
    return event(json.dumps(body))


def numbered(data: bytes) -> int | None:
    """The number of the last event in a piece of a stream, where its events have numbers."""
    found = NUMBER.findall(data)
    return int(found[-1]) if found else None
