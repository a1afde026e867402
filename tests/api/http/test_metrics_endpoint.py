"""/metrics of a live server: what cannot grow, what is counted at once, and what says that the engine died."""

from urllib.parse import quote

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import lose_model, make_worker, serve, wait_until

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(client: httpx.Client) -> Series:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(client: httpx.Client, name: str, **labels: str) -> float:
    return read(client)[name, tuple(sorted(labels.items()))]


def body(**changes: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, **changes}


def test_no_label_grows_with_what_clients_send(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        before = read(client).keys()
        for number in range(20):
            evil = f'evil"{number}\\\n{{}}=é'
            headers = {"x-request-id": f"id-{number}", "user-agent": f"agent-{number}"}
            bodies = [
                body(model=evil),
                body(user=evil),
                body(speculation={"domain": evil}),
                body(speculation={"method": evil}),
                {**body(), evil: 1},
            ]
            for sent in bodies:
                client.post("/v1/chat/completions", json=sent, headers=headers)
            client.post("/v1/completions", json={"model": "tiny", "prompt": evil, "max_tokens": 1, "stop": evil})
            client.post("/tokenize", json={"model": evil, "prompt": evil})
            client.get(f"/v1/models/{quote(evil)}")
            client.request(f"X{number}", "/v1/completions")
            client.get(f"/{number}/metrics?{number}=1")
        after = read(client).keys()
        assert client.post("/v1/chat/completions", json=body(speculation={"max_draft": 31})).is_success
    new = after - before
    # Speed-ups appear once they are known, for domains of the artifact only.
    assert {name.removesuffix("_low").removesuffix("_high") for name, _ in new} <= {
        "knnssd_speculation_speedup",
        "knnssd_speculation_domain_speedup",
    }
    assert {label for _, labels in new for _, label in labels} <= {"stories", "sql", "other"}


def test_tokens_of_a_cancelled_request_count(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        with client.stream("POST", "/v1/chat/completions", json=body(stream=True, max_tokens=200)) as answer:
            lines = answer.iter_lines()
            while "content" not in next(lines):
                pass
            engine.gate.clear()
            assert value(client, "knnssd_generation_tokens_total") >= 1
        engine.gate.set()

        def ended(reason: str) -> float:
            return value(client, "knnssd_request_success_total", finished_reason=reason)

        wait_until(lambda: ended("cancelled") + ended("length") == 1)
        assert value(client, "knnssd_generation_tokens_total") >= 1


def test_a_request_that_takes_too_long_is_an_error(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    engine.gate.clear()
    config = AppConfig(request_timeout=0.2)
    with serve(worker, config) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.post("/v1/chat/completions", json=body()).status_code == 504
        engine.gate.set()
        assert value(client, "knnssd_request_errors_total", reason="timeout") == 1


def test_a_dead_engine_shows(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert value(client, "knnssd_worker_up") == 1
        lose_model(worker)
        engine.error = RuntimeError("broken on purpose")
        assert client.post("/v1/chat/completions", json=body()).status_code == 503
        wait_until(lambda: not worker.is_alive)
        assert value(client, "knnssd_worker_up") == 0
        assert value(client, "knnssd_request_errors_total", reason="failed") == 1
        assert client.post("/v1/chat/completions", json=body()).status_code == 503
        assert value(client, "knnssd_request_rejections_total", reason="dead") == 1


def test_an_unexpected_error_shows(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    worker, _ = make_worker(checkpoint, tiny_artifact)
    monkeypatch.setattr(worker, "reserve", broken)
    with serve(worker) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.post("/v1/chat/completions", json=body()).status_code == 500
        assert value(client, "knnssd_request_errors_total", reason="internal") == 1
