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
PROBES = frozenset({"/health", "/ready", "/metrics"})
"""Paths that machines ask every few seconds; they are logged at debug level."""
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
            logger.log(
                logging.DEBUG if scope["path"] in PROBES else logging.INFO,
                "method=%s path=%s status=%d seconds=%.3f request_id=%s",
                scope["method"],
                scope["path"].encode("ascii", "backslashreplace").decode(),
                status,
                time.perf_counter() - started,
                request_id,
            )


class BodyLimit:
    """Middleware that reads the body up to a limit, and answers 413 beyond it before anything is parsed."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            messages = await self.read(Headers(scope=scope), receive)
        except ApiError as error:
            await error.response(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, replay, send)

    async def read(self, headers: Headers, receive: Receive) -> list[Message]:
        """All messages of the body; raises `BodyTooLargeError` as soon as it is known to be too large."""
        announced = headers.get("content-length", "")
        num_bytes = int(announced) if announced.isdecimal() else 0
        messages: list[Message] = []
        while num_bytes <= self.max_bytes and (not messages or messages[-1].get("more_body", False)):
            messages.append(await receive())
            num_bytes = max(num_bytes, sum(len(message.get("body", b"")) for message in messages))
        if num_bytes > self.max_bytes:
            raise BodyTooLargeError(f"The body is larger than {self.max_bytes:,} bytes.")
        return messages
