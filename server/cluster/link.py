"""HTTP between the ingress and a replica: a request is sent as it came, and its answer read as it comes."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
from starlette.datastructures import Headers
from starlette.types import Message, Scope
from yarl import URL

OF_A_CONNECTION = frozenset({b"connection", b"date", b"host", b"keep-alive", b"server", b"transfer-encoding"})
"""Headers that belong to one connection of the two."""
MADE_ANEW = OF_A_CONNECTION | {b"content-length", b"x-forwarded-for"}
"""Those of a request that are not sent on."""
TRACEPARENT = b"traceparent"
AUTOMATIC = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
"""Headers that aiohttp would add."""
KEPT_SECONDS = 2.0
"""How long an idle connection is kept: less than a replica keeps it, so that none is closed as a request goes out."""
CONNECT_SECONDS = 5.0
SILENCE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A machine that is gone says nothing: after 20 s without an answer of its kernel the connection counts as lost."""

RawHeaders = list[tuple[bytes, bytes]]


class LostError(Exception):
    """The replica cannot be reached, or closed the connection before its answer had ended."""


@dataclass(frozen=True)
class Question:
    """A whole request: its raw target, such as `/v1/models?a=b`, and the headers as they are to be sent."""

    method: str
    path: str
    target: str
    headers: RawHeaders
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Question":
        query = f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else ""
        headers = [header for header in scope["headers"] if header[0] not in MADE_ANEW]
        if scope.get("client"):
            headers.append((b"x-forwarded-for", scope["client"][0].encode()))
        target = scope["raw_path"].decode("latin-1") + query
        return cls(scope["method"], scope["path"], target, headers, body)

    def within(self, traceparent: str) -> "Question":
        """The same as a part of this trace."""
        others = [header for header in self.headers if header[0] != TRACEPARENT]
        return replace(self, headers=[*others, (TRACEPARENT, traceparent.encode())])


class Answer:
    """An answer whose head is there."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.status = response.status
        self.headers = [
            (name.lower(), value) for name, value in response.raw_headers if name.lower() not in OF_A_CONNECTION
        ]

    @property
    def is_stream(self) -> bool:
        return Headers(raw=self.headers).get("content-type", "").startswith("text/event-stream")

    @property
    def start(self) -> Message:
        return {"type": "http.response.start", "status": self.status, "headers": self.headers}

    async def pieces(self) -> AsyncIterator[bytes]:
        """Its body as it comes; raises `LostError`."""
        try:
            async for data in self.response.content.iter_any():
                yield data
        except (aiohttp.ClientError, OSError) as error:
            raise LostError from error


class Link:
    """Connections to replicas."""

    def __init__(self) -> None:
        self.session: aiohttp.ClientSession | None = None

    def opened(self) -> aiohttp.ClientSession:
        """The session of the running event loop, in which it is made."""
        if self.session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_SECONDS, socket_factory=watched_socket)
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self.session = aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=False)
        return self.session

    @asynccontextmanager
    async def ask(self, url: str, question: Question) -> AsyncIterator[Answer]:
        """The answer's head and, as it comes, its body; leaving before its end is a client's leaving."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in question.headers]
        target = URL(url + question.target, encoded=True)
        sent: dict[str, Any] = {"data": question.body, "headers": headers, "allow_redirects": False}
        asking = self.opened().request(question.method, target, skip_auto_headers=AUTOMATIC, **sent)
        try:
            response = await asking
        except (aiohttp.ClientError, OSError) as error:
            raise LostError from error
        try:
            yield Answer(response)
        finally:
            response.close()


def watched_socket(address: Any) -> socket.socket:
    """A socket that notices when the other machine is gone."""
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in SILENCE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made
