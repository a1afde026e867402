"""What one request may ask for, and that its work before and after the engine holds up no other."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.app import AppConfig
from server.engine import Checkpoint, TextCodec
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import GatedEngine, make_worker, serve, wait_until

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
LONG = 40_000
"""Characters of a text for the lane of long ones."""


@pytest.fixture
def live(checkpoint: Checkpoint) -> Iterator[tuple[httpx.Client, Worker, GatedEngine]]:
    worker, engine = make_worker(checkpoint, None, limits=QueueLimits(8, 1000))
    config = AppConfig(max_sequences=6, request_timeout=20)
    with serve(worker, config) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client, worker, engine
        engine.gate.set()


def code(response: httpx.Response) -> tuple[int, str | None]:
    return response.status_code, response.json()["error"]["code"]


def test_sequences_of_one_request_are_limited(live: tuple[httpx.Client, Worker, GatedEngine]) -> None:
    client, worker, _ = live
    many = TEXT | {"prompt": ["hi"] * 4, "n": 2}
    assert code(client.post("/v1/completions", json=many)) == (400, "too_many_sequences")
    assert client.post("/v1/completions", json=many | {"n": 1}).status_code == 200
    wait_until(lambda: not worker.tickets.open)


def test_a_text_that_cannot_fit_is_not_tokenised(
    live: tuple[httpx.Client, Worker, GatedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _, _ = live
    known: list[int] = []
    encode = TextCodec.encode

    def counted(self: TextCodec, text: str, add_special_tokens: bool) -> list[int]:
        known.append(len(text))
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(TextCodec, "encode", counted)
    long = "x" * 100_000
    for path, body in (
        ("/v1/completions", TEXT | {"prompt": long}),
        ("/v1/completions", TEXT | {"prompt": ["hi", long]}),
        ("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": long}]}),
        ("/v1/responses", {"model": "tiny", "input": long}),
        ("/tokenize", {"prompt": long}),
        ("/tokenize", {"messages": [{"role": "user", "content": long}]}),
    ):
        assert code(client.post(path, json=body)) == (400, "context_length_exceeded"), path
    assert not known
    assert client.post("/tokenize", json={"prompt": "hi"}).json()["count"] == 2
    predicted = CHAT | {"prediction": {"type": "content", "content": long}}
    assert client.post("/v1/chat/completions", json=predicted).status_code == 200
    assert max(known) < 10_000


def test_short_texts_do_not_wait_for_long_ones(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long ones wait for each other, and their clients are told where too many do."""
    monkeypatch.setattr("server.api.tokenization.LIMITS", QueueLimits(2, 10 * LONG))
    monkeypatch.setattr(TextCodec, "longest_token", 1000)
    go_on, encode = threading.Event(), TextCodec.encode

    def held(self: TextCodec, text: str, add_special_tokens: bool) -> list[int]:
        if len(text) == LONG:
            go_on.wait(30)
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(TextCodec, "encode", held)
    worker, _ = make_worker(checkpoint, None)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client, ThreadPoolExecutor(3) as pool:
        body = {"prompt": "x" * LONG}
        try:
            waiting = [pool.submit(client.post, "/tokenize", json=body) for _ in range(3)]
            wait_until(lambda: any(each.done() for each in waiting))
            (refused,) = (each.result() for each in waiting if each.done())
            assert code(refused) == (429, "queue_full")
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        finally:
            go_on.set()
        assert sorted(each.result().status_code for each in waiting) == [200, 200, 429]
        assert client.post("/tokenize", json=body).json()["count"] == LONG


def test_the_deadline_ends_what_waits_for_its_lane(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, encode = threading.Event(), TextCodec.encode

    def held(self: TextCodec, text: str, add_special_tokens: bool) -> list[int]:
        go_on.wait(30)
        return encode(self, text, add_special_tokens)

    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(request_timeout=0.5)) as url, httpx.Client(base_url=url, timeout=30) as client:
        monkeypatch.setattr(TextCodec, "encode", held)
        try:
            for path, body in (("/v1/completions", TEXT), ("/v1/completions", TEXT), ("/tokenize", {"prompt": "hi"})):
                assert code(client.post(path, json=body)) == (504, "request_timeout")
        finally:
            go_on.set()
        assert not worker.tickets.open
        wait_until(lambda: client.post("/v1/completions", json=TEXT).status_code == 200)
