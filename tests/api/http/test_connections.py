"""Clients that hold a connection and do not do their part: they lose it, and nobody else notices."""

import asyncio
import contextlib
import logging
import resource
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from server.__main__ import on_loop_error
from server.api.http.connection import ConnectionLimits
from server.api.http.reply import GRACE
from server.app import AppConfig
from server.engine import Checkpoint
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import GatedEngine, make_worker, serve, wait_until
from tests.attacks import request

PATIENCE = ConnectionLimits(max_connections=1000, client_timeout=1)
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "seed": 1, "min_tokens": 200}
LOUD = CHAT | {"max_tokens": 200, "stream": True, "n": 4, "logprobs": True, "top_logprobs": 20}
"""An answer of some megabytes: more than the socket's buffers hold."""


def connected(url: str, sent: bytes = b"") -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((host, int(port)))
    connection.sendall(sent)
    connection.settimeout(20)
    return connection


def rest(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection; an error where it does not."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while new := connection.recv(1 << 20):
            received += new
    return received


def is_closed(connection: socket.socket) -> bool:
    rest(connection)
    return True


@pytest.fixture
def live(checkpoint: Checkpoint) -> Iterator[tuple[str, Worker, GatedEngine]]:
    worker, engine = make_worker(checkpoint, None, limits=QueueLimits(4, 10_000))
    with serve(worker, AppConfig(request_timeout=20), PATIENCE, send_buffer=8192) as url:
        yield url, worker, engine
        engine.gate.set()


HALF = request("/v1/chat/completions", CHAT)


@pytest.mark.parametrize("sent", [b"", b"POST /v1/chat", HALF[:60], HALF[:-5]], ids=["idle", "line", "headers", "body"])
def test_half_a_request_loses_its_connection(live: tuple[str, Worker, GatedEngine], sent: bytes) -> None:
    url, worker, _ = live
    with connected(url, sent) as connection:
        assert is_closed(connection)
    assert not worker.tickets.open
    assert httpx.get(f"{url}/health").status_code == 200


def test_a_request_that_comes_byte_by_byte_has_no_more_time(live: tuple[str, Worker, GatedEngine]) -> None:
    with connected(live[0]) as connection:
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            for byte in HALF * 10:
                connection.send(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - began < 10


def test_a_whole_request_may_take_longer(live: tuple[str, Worker, GatedEngine]) -> None:
    url, _, engine = live
    engine.gate.clear()
    with connected(url, request("/v1/chat/completions", CHAT | {"max_tokens": 200})) as connection:
        wait_until(lambda: engine.num_steps > 0)
        time.sleep(3 * PATIENCE.client_timeout)
        engine.gate.set()
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_who_does_not_read_loses_the_connection_and_keeps_no_place(live: tuple[str, Worker, GatedEngine]) -> None:
    """The stream takes all four places; they are free when it is written, though nobody has read it."""
    url, worker, engine = live
    with connected(url, request("/v1/chat/completions", LOUD)) as connection:
        wait_until(lambda: engine.num_steps > 0)
        wait_until(lambda: not any(ticket.num_unfinished for ticket in worker.tickets.open))
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"max_tokens": 200}).status_code == 200
        wait_until(lambda: not worker.tickets.open)
        assert is_closed(connection)


def test_the_deadline_ends_who_does_not_read(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None, limits=QueueLimits(4, 10_000))
    limits = ConnectionLimits(client_timeout=1000)
    with serve(worker, AppConfig(request_timeout=3), limits, send_buffer=8192) as url:
        with connected(url, request("/v1/chat/completions", LOUD)) as connection:
            wait_until(lambda: engine.num_steps > 0)
            wait_until(lambda: not worker.tickets.open and not worker.generations)
            time.sleep(GRACE + 0.5)
            assert b"request_timeout" not in rest(connection)
        assert b'knnssd_request_errors_total{reason="timeout"} 1.0' in worker.metrics.render()


def test_the_deadline_of_who_reads_late_is_an_event(checkpoint: Checkpoint) -> None:
    """What was not taken by then is dropped, and the error comes next."""
    worker, engine = make_worker(checkpoint, None)
    engine.shut_at_step = 5
    streamed = request("/v1/chat/completions", CHAT | {"stream": True})
    with serve(worker, AppConfig(request_timeout=3)) as url, connected(url, streamed) as connection:
        wait_until(lambda: engine.num_steps == 5)
        wait_until(lambda: not worker.tickets.open)
        engine.gate.set()
        received = b""
        while new := connection.recv(1 << 20):
            received += new
            if b"request_timeout" in received:
                break
        assert received.startswith(b"HTTP/1.1 200") and b"request_timeout" in received


def test_an_unread_answer_is_not_waited_for(live: tuple[str, Worker, GatedEngine]) -> None:
    """It fits the buffers, so that nothing is held up but the connection, which uvicorn closes and does not abort."""
    url, worker, _ = live
    server_side = worker.loop
    with connected(url, request("/v1/chat/completions", LOUD | {"stream": False})) as connection:
        wait_until(lambda: not worker.tickets.open)
        assert server_side.is_running()
        assert is_closed(connection)


def test_idle_connections_make_room(checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, None, ConnectionLimits(max_connections=20)) as url, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(100)]
        for path in ("/health", "/ready"):
            assert httpx.get(f"{url}{path}").status_code == 200
        assert is_closed(idle[0])


def test_requests_that_run_make_no_room(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    with serve(worker, None, ConnectionLimits(max_connections=2)) as url, contextlib.ExitStack() as stack:
        engine.gate.clear()
        busy = [stack.enter_context(connected(url, request("/v1/chat/completions", CHAT))) for _ in range(2)]
        wait_until(lambda: len(worker.tickets.open) == 2)
        assert is_closed(stack.enter_context(connected(url)))
        engine.gate.set()
        assert all(connection.recv(100).startswith(b"HTTP/1.1 200") for connection in busy)


def test_connections_leave_files_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 4096))
    assert ConnectionLimits(1000).fitting().max_connections == 128
    assert ConnectionLimits(100).fitting().max_connections == 100
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ConnectionLimits(1000).fitting().max_connections == 1000


def test_a_full_process_is_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    try:
        with caplog.at_level(logging.INFO):
            on_loop_error(loop, {"message": "socket.accept() out of system resource", "exception": OSError(24, "full")})
            assert not caplog.records
            on_loop_error(loop, {"message": "something else"})
        assert caplog.messages == ["something else"]
    finally:
        loop.close()
