"""Faults, one of each kind: whoever is concerned gets a clear error, and the next request is served."""

import gc
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from server.engine import Checkpoint, RoutingArtifact
from server.engine.sampling.grammar_matcher import GrammarMatcher
from server.engine.sampling.logits_processor import LogitsProcessor
from server.generation import Generation
from server.worker import StuckError, Worker
from tests.api.live import GatedEngine, lose_model, make_worker, serve, wait_until

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "seed": 1}
Live = tuple[str, Worker, GatedEngine]


@pytest.fixture
def live(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[Live]:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield f"{url}/v1/chat/completions", worker, engine
        engine.gate.set()


def answer(url: str, **changes: Any) -> Any:
    response = httpx.post(url, json=BODY | changes, timeout=30)
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def fail_in(function: Callable[..., Any], error: Exception, seed: int) -> Callable[..., Any]:
    """The same function, but for the request of one seed."""

    def failing(self: Generation, *arguments: Any) -> Any:
        if self.sequence.seed == seed:
            raise error
        return function(self, *arguments)

    return failing


@pytest.mark.parametrize("error", [RuntimeError("secret detail"), MemoryError(), ValueError("secret detail")])
def test_a_step_that_fails_costs_the_open_requests_and_no_later_one(live: Live, error: Exception) -> None:
    url, worker, engine = live
    before = answer(url)
    engine.gate.clear()
    num_steps = engine.num_steps
    with ThreadPoolExecutor(2) as pool, httpx.Client(timeout=30) as client:
        waiting = [pool.submit(client.post, url, json=BODY | {"stream": stream}) for stream in (False, True)]
        # The first has begun a step, so nothing but the second can wait in the inbox.
        wait_until(lambda: engine.num_steps > num_steps and worker.inbox.qsize() + len(worker.generations) == 2)
        engine.error = error
        engine.gate.set()
        for request in waiting:
            response = request.result()
            assert response.status_code == 503
            assert response.json()["error"]["message"].startswith("The engine failed while it worked on this request")
            assert "secret" not in response.text
        wait_until(lambda: worker.unavailable is None)
        assert answer(url) == before
        assert client.get(url.replace("/v1/chat/completions", "/health")).json() == {"status": "alive"}
    assert worker.served is not None and worker.served.engine is not engine
    assert b"knnssd_engine_failures_total 1.0" in worker.metrics.render()
    assert b'knnssd_request_errors_total{reason="failed"} 2.0' in worker.metrics.render()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_an_engine_that_failed_is_not_kept(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, caplog: pytest.LogCaptureFixture, is_frozen: bool
) -> None:
    """A second model beside it may have no room; the command has collections pass over what it has loaded."""
    # A record that is kept for the test would keep the traceback, and with it the engine.
    caplog.set_level(logging.CRITICAL + 1, "server.worker")
    worker, engine = make_worker(checkpoint, tiny_artifact)
    known = weakref.ref(engine)
    with serve(worker) as url:
        engine.error = RuntimeError("broken")
        del engine
        if is_frozen:
            gc.freeze()
        assert httpx.post(f"{url}/v1/chat/completions", json=BODY).status_code == 503
        wait_until(lambda: worker.unavailable is None)
        gc.collect()
        assert known() is None
        assert b"knnssd_num_requests_running 0.0" in worker.metrics.render()


def test_a_failure_in_the_middle_of_a_stream_is_an_event(live: Live) -> None:
    url, worker, engine = live
    engine.fatal_step = 3
    with httpx.stream("POST", url, json=BODY | {"stream": True, "min_tokens": 200}) as response:
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    assert response.status_code == 200
    assert events[0]["choices"] and events[-1]["error"]["code"] == "unavailable"
    wait_until(lambda: worker.unavailable is None)
    assert answer(url)


@pytest.mark.parametrize("place", ["advance", "spend", "outcome"])
def test_an_error_in_the_text_of_one_request_is_its_own(
    live: Live, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    url, worker, engine = live
    before = answer(url)
    failing = fail_in(getattr(Generation, place), RuntimeError("secret detail"), seed=7)
    monkeypatch.setattr(Generation, place, failing)
    engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        ill = pool.submit(httpx.post, url, json=BODY | {"seed": 7, "n": 2}, timeout=30)
        well = pool.submit(answer, url)
        wait_until(lambda: len(worker.tickets.open) == 2)
        engine.gate.set()
        assert (ill.result().status_code, ill.result().json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in ill.result().text
        assert well.result() == before
    wait_until(lambda: not worker.generations and not worker.tickets.open)
    assert engine.num_running == engine.num_waiting == 0
    assert worker.served is not None and worker.served.engine is engine


def test_an_error_in_the_text_of_a_stream_is_its_last_event(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _, engine = live
    push, num_tokens = Generation.advance, 0

    def advance(self: Generation, *arguments: Any) -> Any:
        nonlocal num_tokens
        num_tokens += 1
        if num_tokens == 5:
            raise RuntimeError("secret detail")
        return push(self, *arguments)

    monkeypatch.setattr(Generation, "advance", advance)
    with httpx.stream("POST", url, json=BODY | {"stream": True, "min_tokens": 200}) as response:
        events = [line for line in response.iter_lines() if line]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "internal_error"
    wait_until(lambda: engine.num_running == 0)
    assert answer(url)


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("part", "name"), [(LogitsProcessor, "apply"), (GrammarMatcher, "restrict"), (GrammarMatcher, "forced")]
)
def test_an_error_in_one_requests_part_of_a_step_is_its_own(
    live: Live, monkeypatch: pytest.MonkeyPatch, part: type, name: str, is_streamed: bool
) -> None:
    """Its logits processor or its grammar raises at the fourth call, beside an answer that goes on."""
    url, worker, engine = live
    before, function, num_calls = answer(url, min_tokens=50), getattr(part, name), 0

    def failing(self: Any, *arguments: Any) -> Any:
        nonlocal num_calls
        num_calls += self.grammar is not None
        if num_calls == 4:
            raise RuntimeError("secret detail")
        return function(self, *arguments)

    monkeypatch.setattr(part, name, failing)
    engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        held = {"structured_outputs": {"regex": "[a-z]{60}"}, "n": 2, "stream": is_streamed}
        ill = pool.submit(httpx.post, url, json=BODY | held, timeout=30)
        well = pool.submit(answer, url, min_tokens=50)
        wait_until(lambda: len(worker.tickets.open) == 2)
        engine.gate.set()
        status, text = ill.result().status_code, ill.result().text
        assert status == (200 if is_streamed else 500)
        assert '"code":"internal_error"' in text.replace(" ", "") and "secret" not in text
        assert well.result() == before
    wait_until(lambda: not worker.generations and not worker.tickets.open)
    assert engine.num_running == engine.num_waiting == 0
    assert worker.served is not None and worker.served.engine is engine


def test_errors_in_traces_and_metrics_cost_no_answer(
    live: Live, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, worker, engine = live
    before = answer(url)

    def broken(*arguments: Any) -> None:
        raise RuntimeError("no collector")

    monkeypatch.setattr(worker, "trace", broken)
    monkeypatch.setattr(worker.metrics, "observe_step", broken)
    assert answer(url) == before
    assert "a trace could not be recorded" in caplog.text
    assert worker.served is not None and worker.served.engine is engine


def test_a_request_that_the_engine_cannot_take_fails_alone(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _, engine = live
    add = engine.add
    monkeypatch.setattr(engine, "add", lambda request: 1 / 0 if request.sampling.seed == 8 else add(request))
    assert httpx.post(url, json=BODY | {"seed": 7, "n": 2}).status_code == 500
    assert answer(url)


def test_a_step_that_hangs_ends_the_worker_with_a_clear_error(live: Live) -> None:
    url, worker, engine = live
    engine.gate.clear()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(httpx.post, url, json=BODY, timeout=30)
        wait_until(lambda: worker.step_began_at is not None)
        worker.check_progress(limit=30)
        assert worker.is_alive
        worker.check_progress(limit=0)
        assert waiting.result().json()["error"]["message"].startswith("The engine has stopped")
    assert isinstance(worker.failure, StuckError)
    assert httpx.get(url.replace("/v1/chat/completions", "/health")).status_code == 503
    assert httpx.post(url, json=BODY).status_code == 503


def test_a_model_that_cannot_be_loaded_again_ends_the_worker(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    url, worker, engine = live
    lose_model(worker)
    engine.error = RuntimeError("broken")
    assert httpx.post(url, json=BODY).status_code == 503
    wait_until(lambda: worker.failure is not None)
    assert worker.unavailable == "dead"
    assert "no further request is served" in caplog.text
