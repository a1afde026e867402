"""What one request may ask for, and that its work before and after the engine holds up no other."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.api.answers.transcript import Transcript
from server.api.schema.messages import MAX_PARTS
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


def test_prompts_of_one_request_leave_half_of_the_queue(live: tuple[httpx.Client, Worker, GatedEngine]) -> None:
    """Of a queue of 1,000 tokens; one prompt alone may be as long as the context."""
    client, worker, _ = live
    for changes in ({"prompt": [[9] * 101] * 5}, {"prompt": [9] * 101, "n": 5}, {"prompt": ["x" * 101] * 5}):
        refused = client.post("/v1/completions", json=TEXT | changes)
        assert code(refused) == (400, "too_many_tokens")
        assert refused.json()["error"]["param"] == "prompt" and " 500 a request" in refused.text
    for fitting in ({"prompt": [[9] * 100] * 5}, {"prompt": [9] * 250}):
        assert client.post("/v1/completions", json=TEXT | fitting).status_code == 200
        wait_until(lambda: not worker.tickets.open)


TURN = {"role": "user", "content": "hi"}
PART = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("path", "field", "rest"),
    [
        ("/v1/chat/completions", "messages", {"model": "tiny", "max_tokens": 1}),
        ("/v1/responses", "input", {"model": "tiny", "max_output_tokens": 1}),
        ("/v1/messages", "messages", {"model": "tiny", "max_tokens": 1}),
        ("/v1/messages/count_tokens", "messages", {"model": "tiny"}),
        ("/tokenize", "messages", {}),
    ],
)
def test_messages_and_parts_are_counted_before_they_are_checked(
    live: tuple[httpx.Client, Worker, GatedEngine], path: str, field: str, rest: dict[str, Any]
) -> None:
    """So the error is that there are too many, not that the last one has no role."""
    client, _, _ = live
    part = PART | {"type": "input_text"} if field == "input" else PART
    for turns in ([TURN] * MAX_PARTS, [TURN, TURN | {"content": [part] * (MAX_PARTS - 1)}]):
        response = client.post(path, json={**rest, field: [*turns, {}]})
        assert response.status_code == 400, response.text
        assert "4,097 messages and parts" in response.text or "4,098 messages and parts" in response.text
    assert client.post(path, json={**rest, field: [TURN | {"content": [part]}]}).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/detokenize", {"tokens": [1] * 200_000}),
        ("/v1/completions", TEXT | {"prompt": [1] * 200_000}),
        ("/v1/completions", TEXT | {"prompt": [[1]] * 200_000}),
        ("/v1/chat/completions", CHAT | {"logit_bias": {str(i): 1 for i in range(200_000)}}),
        ("/v1/chat/completions", CHAT | {"metadata": {str(i): "" for i in range(200_000)}}),
    ],
)
def test_a_body_of_too_many_values_is_not_parsed(
    live: tuple[httpx.Client, Worker, GatedEngine], path: str, body: dict[str, Any]
) -> None:
    """A parser would find that its last brace is missing."""
    client, _, _ = live
    headers = {"content-type": "application/json"}
    refused = client.post(path, content=json.dumps(body)[:-1], headers=headers)
    assert code(refused) == (413, "request_too_large") and "149,796 commas" in refused.text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 20}),
        ("/v1/completions", TEXT),
        ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 2}),
        ("/v1/messages", {"model": "tiny", "messages": [TURN], "max_tokens": 2}),
    ],
)
def test_whole_answers_are_written_beside_the_event_loop(
    live: tuple[httpx.Client, Worker, GatedEngine], path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _, _ = live
    writing, go_on, write = threading.Event(), threading.Event(), Transcript.whole_json

    def whole_json(self: Transcript) -> bytes:
        writing.set()
        go_on.wait(30)
        return write(self)

    monkeypatch.setattr(Transcript, "whole_json", whole_json)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, path, json=body)
        try:
            assert writing.wait(30)
            assert client.get("/health").status_code == 200
            assert "[DONE]" in client.post("/v1/chat/completions", json=CHAT | {"stream": True}).text
            assert not answer.done()
        finally:
            go_on.set()
        assert answer.result().status_code == 200


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
