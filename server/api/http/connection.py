"""A client's connection: what it may hold open, and for how long.

uvicorn waits for ever for a first byte, for the rest of a request, and for a client to read. Here each has a limit, and
where there are as many connections as there may be, the one whose client has been waited for longest makes room.
"""

import asyncio
import resource
import socket
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

ACCEPTED_AT_ONCE = 16
"""Connections that asyncio accepts in a row; its limit is the one that it hands to `listen`, too."""
BACKLOG = 2048
"""Connections that may wait in the kernel; `listen` is called again for it."""
RESERVED_FILES = 64 + 4 * ACCEPTED_AT_ONCE
"""Files open beside connections: the log, libraries, and connections that were accepted and are not begun yet."""
ABORT = "abort"
"""Where a request's state has a function that closes its connection, sent or unsent."""


@dataclass(frozen=True)
class ConnectionLimits:
    """Most connections at once, and seconds that a client has: to send a request, and to go on reading an answer."""

    max_connections: int = 1000
    client_timeout: float = 30.0

    def fitting(self) -> "ConnectionLimits":
        """As many connections as this process may have files open, with some left."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if files == resource.RLIM_INFINITY:
            return self
        return replace(self, max_connections=max(1, min(self.max_connections, files - RESERVED_FILES)))


class Connection(H11Protocol):
    """An HTTP connection within `limits`.

    `asking` runs while a request is not whole, `reading` while much is unsent, `ending` after each answer, for uvicorn
    closes idle connections and then waits for what is unsent.
    """

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    waiting: ClassVar[dict["Connection", None]] = {}
    """All whose client's turn it is, the one that has been waited for longest first."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.app_state = {**self.app_state, ABORT: self.abort}
        self.asking: asyncio.TimerHandle | None = None
        self.reading: asyncio.TimerHandle | None = None
        self.ending: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, limits: ConnectionLimits) -> type["Connection"]:
        """The same with other limits, for uvicorn, which makes connections of a class."""
        return type(cls.__name__, (cls,), {"limits": limits, "waiting": {}})

    @property
    def is_asking(self) -> bool:
        """Whether a request is still to come, or not all of it is there."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    @property
    def is_waiting(self) -> bool:
        """Whether it is the client's turn, and nothing is lost but its time where it is closed."""
        is_idle = self.cycle is None or self.cycle.response_complete
        return (self.is_asking or is_idle) and not self.transport.is_closing()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.expect_request()
        if len(self.connections) > self.limits.max_connections:
            next(iter(self.waiting)).abort()

    def data_received(self, data: bytes) -> None:
        if self.asking is None and self.is_waiting:
            self.expect_request()
        super().data_received(data)
        if not self.is_asking:
            self.asking = stop(self.asking)
        self.note_turn()

    def on_response_complete(self) -> None:
        stop(self.ending)
        self.ending = self.loop.call_later(self.limits.client_timeout, self.abort_if_closing)
        super().on_response_complete()
        self.note_turn()

    def pause_writing(self) -> None:
        super().pause_writing()
        stop(self.reading)
        self.reading = self.loop.call_later(self.limits.client_timeout, self.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.reading = stop(self.reading)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.asking, self.reading, self.ending):
            stop(timer)
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def expect_request(self) -> None:
        """Gives the client its time for a whole request, however many pieces it comes in."""
        self.waiting.pop(self, None)
        self.note_turn()
        self.asking = self.loop.call_later(self.limits.client_timeout, self.abort)

    def note_turn(self) -> None:
        """Keeps its place among those that are waited for, takes the last one, or gives it up."""
        if self.is_waiting:
            self.waiting.setdefault(self)
        else:
            self.waiting.pop(self, None)

    def abort(self) -> None:
        self.waiting.pop(self, None)
        self.transport.abort()

    def abort_if_closing(self) -> None:
        if self.transport.is_closing():
            self.abort()


def stop(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Cancels a timer that may be there; None takes its place."""
    if timer is not None:
        timer.cancel()
    return None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `OSError` that names the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error
    # Connections inherit it. Without it a small write waits up to 40 ms for the acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def http_config(app: ASGIApp, limits: ConnectionLimits, proxies: str | None = None) -> uvicorn.Config:
    """How uvicorn is to serve an application: over these connections, and without a log of its own.

    `proxies` are the addresses of those that tell clients' addresses; without it, those of the same machine.
    """
    return uvicorn.Config(
        app,
        http=Connection.within(limits),
        ws="none",
        log_config=None,
        access_log=False,
        backlog=ACCEPTED_AT_ONCE,
        forwarded_allow_ips=proxies,
        timeout_graceful_shutdown=5,
    )
