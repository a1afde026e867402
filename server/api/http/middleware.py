"""The way into and out of every route: request id, access log, answers to errors, limit of the body's size."""

import logging
import re
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.errors import ApiError, BodyTooLargeError, api_error

logger = logging.getLogger("server.access")

SANE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
PROBES = frozenset({"/health", "/ready", "/metrics", "/now"})
"""Paths that machines ask every few seconds; they are logged at debug level."""
BYTES_PER_COMMA = 28
"""Of the largest body; 4 MiB may have 150,000. That many token ids, or twice what prose has, take milliseconds."""
CLIENT_GONE = 499
"""Status in the log for a client that left before it was answered, as proxies write it."""


class Exchange:
    """Outermost middleware: names the request, logs one line for it, and answers the errors that its route raises.

    A full queue becomes a 429, for instance, and an error that nobody foresaw a 500 (see `api_error`). The line
    has method, path, status and time; never a header, a query or a body.
    """

    def __init__(self, app: ASGIApp, on_internal_error: Callable[[], None]) -> None:
        self.app = app
        self.on_internal_error = on_internal_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        # Whoever is behind names it alike.
        MutableHeaders(scope=scope)["x-request-id"] = request_id
        started = time.perf_counter()
        status = CLIENT_GONE

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_named)
        except Exception as error:
            failure = api_error(error)
            if status != CLIENT_GONE:
                raise
            await failure.response(scope, receive, send_named)
        finally:
            if status == HTTPStatus.INTERNAL_SERVER_ERROR:
                self.on_internal_error()
            fields = {
                "method": scope["method"],
                "path": scope["raw_path"].decode("ascii", "backslashreplace"),
                "status": status,
                "seconds": round(time.perf_counter() - started, 3),
                "request_id": request_id,
            }
            level = logging.DEBUG if scope["path"] in PROBES else logging.INFO
            message = " ".join(f"{name}={value}" for name, value in fields.items())
            logger.log(level, "%s", message, extra={"fields": fields})


class BodyLimit:
    """Middleware that reads the body up to a limit, and answers 413 beyond it before anything is parsed.

    Bytes are limited, and commas: what takes long to parse and to check has many values, and these stand between them.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes
        self.max_commas = max(1000, max_bytes // BYTES_PER_COMMA)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self.read(Headers(scope=scope), receive)
        except ApiError as error:
            await error.response(scope, receive, send)
            return
        if body is None:
            return
        whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self.app(scope, replay, send)

    async def read(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body, None where the client left; raises `BodyTooLargeError` as soon as it is known to be that."""
        announced = headers.get("content-length", "")
        self.check(int(announced) if announced.isdecimal() else 0, 0)
        body, num_commas, is_whole = bytearray(), 0, False
        while not is_whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            piece = message.get("body", b"")
            body += piece
            num_commas += piece.count(b",")
            self.check(len(body), num_commas)
            is_whole = not message.get("more_body", False)
        return bytes(body)

    def check(self, num_bytes: int, num_commas: int) -> None:
        if num_bytes > self.max_bytes:
            raise BodyTooLargeError(f"The body is larger than {self.max_bytes:,} bytes.")
        if num_commas > self.max_commas:
            raise BodyTooLargeError(
                f"The body has more than {self.max_commas:,} commas: too many values for one request."
            )
