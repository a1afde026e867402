"""What one client may have: requests at once, and requests a minute."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from server.api.http.client_limits import COUNTED, MINUTE, ClientLimitError, ClientLimits, Counts
from server.app import AppConfig, create_app
from server.engine import Checkpoint
from server.worker import Worker
from tests.api.live import GatedEngine, make_worker, serve, wait_until

TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
KEYS = ("one", "two")


@pytest.fixture
def live(checkpoint: Checkpoint) -> Iterator[tuple[str, Worker, GatedEngine]]:
    worker, engine = make_worker(checkpoint, None)
    config = AppConfig(api_keys=KEYS, client_limits=ClientLimits(at_once=2, per_minute=1000))
    with serve(worker, config) as url:
        yield url, worker, engine
        engine.gate.set()


def client(url: str, key: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=30)


def complete(asking: openai.OpenAI) -> bool:
    """Whether it is answered; raises what refuses it."""
    return bool(asking.completions.create(**TEXT).choices)


def refusals(worker: Worker) -> str:
    lines = worker.metrics.render().decode().splitlines()
    return next(line for line in lines if 'rejections_total{reason="client_limit"}' in line).rpartition(" ")[2]


def test_a_key_has_so_many_requests_at_once(live: tuple[str, Worker, GatedEngine]) -> None:
    url, worker, engine = live
    with client(url, "one") as one, client(url, "two") as two, ThreadPoolExecutor(3) as pool:
        engine.gate.clear()
        held = [pool.submit(complete, one) for _ in range(2)]
        wait_until(lambda: len(worker.tickets.open) == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            complete(one)
        assert refused.value.code == "rate_limit_exceeded"
        # Others are not held up by it, and what costs nothing is not counted.
        held.append(pool.submit(complete, two))
        wait_until(lambda: len(worker.tickets.open) == 3)
        assert one.models.list().data
        engine.gate.set()
        assert all(each.result() for each in held)
        assert complete(one)
        assert refusals(worker) == "1.0"


@pytest.mark.parametrize("ending", ["answered", "refused", "left"])
def test_a_place_is_free_however_its_request_ends(live: tuple[str, Worker, GatedEngine], ending: str) -> None:
    url, worker, _ = live
    headers = {"authorization": "Bearer one"}
    with httpx.Client(base_url=url, headers=headers, timeout=30) as http:
        for _ in range(4):
            if ending == "answered":
                assert http.post("/v1/completions", json=TEXT).status_code == 200
            elif ending == "refused":
                assert http.post("/v1/completions", content=b"{").status_code == 400
            else:
                with http.stream("POST", "/v1/completions", json=TEXT | {"max_tokens": 200, "stream": True}) as answer:
                    next(answer.iter_raw())
                wait_until(lambda: not worker.tickets.open)
        wait_until(lambda: http.post("/v1/completions", json=TEXT).status_code == 200)


def test_the_error_has_anthropics_form_where_it_is_asked_for(checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker, AppConfig(client_limits=ClientLimits(per_minute=1))) as url:
        first = httpx.post(f"{url}/v1/messages", json={})
        refused = httpx.post(f"{url}/v1/messages", json={})
    assert (first.status_code, refused.status_code) == (400, 429)
    assert refused.json()["error"] == {
        "type": "rate_limit_error",
        "message": "Too many requests: a client may begin 1 a minute.",
    }
    assert 50 < int(refused.headers["retry-after"]) <= 60


def test_a_rate_allows_a_minutes_requests_at_once_and_then_one_at_a_time() -> None:
    now = 1000.0
    counts = Counts(ClientLimits(per_minute=3), lambda: now)
    for _ in range(3):
        counts.take("one")
    with pytest.raises(ClientLimitError) as refused:
        counts.take("one")
    assert dict(refused.value.headers) == {"Retry-After": "20", "retry-after-ms": "20000"}
    counts.take("two")
    now += 20
    counts.take("one")
    with pytest.raises(ClientLimitError):
        counts.take("one")
    now += 10 * MINUTE
    for _ in range(3):
        counts.take("one")
    assert counts.paid_until.keys() == {"one"}, "who has its whole rate again is forgotten"


def test_a_request_that_finds_no_place_costs_nothing_of_the_rate() -> None:
    counts = Counts(ClientLimits(at_once=1, per_minute=2), lambda: 0.0)
    counts.take("one")
    for _ in range(5):
        with pytest.raises(ClientLimitError, match="may have 1 unfinished"):
            counts.take("one")
    counts.give_back("one")
    counts.take("one")
    assert counts.open == {"one": 1}
    counts.give_back("one")
    assert not counts.open


def test_all_that_generates_is_counted(checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    paths = create_app(worker, AppConfig()).openapi()["paths"]
    answers = {path: ways["post"]["responses"]["200"]["content"] for path, ways in paths.items() if "post" in ways}
    assert {path for path, contents in answers.items() if "text/event-stream" in contents} == COUNTED
