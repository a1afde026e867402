"""What the page shows of the server beside answers: `/now` and `/map`."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact, methods
from server.tickets import QueueLimits
from tests.api.live import lose_model, make_worker, serve, wait_until

BODY = {"model": "tiny", "prompt": "hello", "max_tokens": 24, "temperature": 0}


@pytest.fixture
def http(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[httpx.Client]:
    worker, _ = make_worker(checkpoint, tiny_artifact, limits=QueueLimits(10, 1000))
    with (
        serve(worker, AppConfig(grafana_url="http://127.0.0.1:3000")) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_now_begins_with_nothing(http: httpx.Client) -> None:
    now = http.get("/now").json()
    assert (now["model"], now["method"], now["window_seconds"]) == ("tiny", "cascade", 300)
    assert (now["running"], now["slots"], now["waiting"], now["max_waiting"]) == (0, 4, 0, 6)
    assert (now["tokens_cached"], now["max_tokens_cached"]) == (0, 4 * 256)
    assert now["grafana"] == "http://127.0.0.1:3000"
    assert [domain["name"] for domain in now["domains"]] == ["stories", "sql", "other"]
    assert {tuple(domain.values())[1:] for domain in now["domains"]} == {(0, 0, 0, 0, 0.0, None)}
    assert [method["name"] for method in now["methods"]] == list(methods())
    lacking = {method["name"]: method["lacks"] for method in now["methods"]}
    assert (lacking["skip"], lacking["low-bit"]) == (None, "draft weights")


def test_now_counts_what_answers_had(http: httpx.Client) -> None:
    drafted = accepted = 0
    for domain, method in (("sql", "skip"), ("sql", "lookup"), ("stories", "plain")):
        asked = {"domain": domain, "method": method}
        answer = http.post("/v1/completions", json=BODY | {"speculation": asked}).json()
        assert answer["usage"]["completion_tokens"] == 24
        details = answer["usage"]["completion_tokens_details"]
        drafted += details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"]
        accepted += details["accepted_prediction_tokens"]
    now = http.get("/now").json()
    stories, sql, other = now["domains"]
    assert (stories["answers"], stories["tokens"], stories["drafted"]) == (1, 24, 0)
    assert (sql["answers"], sql["tokens"]) == (2, 48)
    assert (sql["drafted"], sql["accepted"]) == (drafted, accepted) and drafted
    assert other["answers"] == 0
    assert now["tokens_per_second"] > 0 and sql["tokens_per_second"] > 0
    assert 0 < now["tokens_cached"] <= now["max_tokens_cached"]


def test_now_shows_a_queue_and_a_server_that_drains(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None, max_batch=1)
    with serve(worker) as url, ThreadPoolExecutor(1) as pool:
        engine.gate.clear()
        held = pool.submit(httpx.post, f"{url}/v1/completions", json=BODY | {"n": 3}, timeout=30)
        try:
            wait_until(lambda: engine.num_steps > 0)
            now = httpx.get(f"{url}/now").json()
            assert (now["running"], now["slots"], now["waiting"]) == (0, 1, 3)
            assert [domain["name"] for domain in now["domains"]] == ["none"] and now["grafana"] is None
            worker.drain()
            assert httpx.get(f"{url}/now").status_code == 200
        finally:
            engine.gate.set()
        assert held.result().status_code == 200
        assert b'rejections_total{reason="draining"} 0.0' in worker.metrics.render()


def test_a_dead_server_has_no_now(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None)
    with serve(worker) as url:
        lose_model(worker)
        engine.error = RuntimeError("secret detail")
        assert httpx.post(f"{url}/v1/completions", json=BODY).status_code == 503
        wait_until(lambda: not worker.is_alive)
        response = httpx.get(f"{url}/now")
        assert response.status_code == 503 and response.json()["error"]["code"] == "unavailable"


def test_the_map_has_each_domain_with_its_anchors_and_draft(http: httpx.Client) -> None:
    found = http.get("/map").json()
    assert found["num_layers"] == 4
    stories, sql, other = found["domains"]
    assert [(d["name"], d["threshold"]) for d in (stories, sql, other)] == [
        ("stories", -1.0),
        ("sql", -1.0),
        ("other", None),
    ]
    assert sorted(abs(d["anchors"][0][0]) for d in (stories, sql)) == [pytest.approx(1)] * 2
    assert stories["anchors"][0][0] * sql["anchors"][0][0] < 0 and other["anchors"] == []
    assert (sql["draft"]["attention"], sql["draft"]["mlp"]) == ([3], [1, 3])
    (card,) = http.get("/v1/models").json()["data"]
    for domain in found["domains"]:
        assert card["drafts"][domain["name"]].items() <= domain["draft"].items()
    assert http.get("/map").json() == found


def test_without_an_artifact_there_is_no_map(checkpoint: Checkpoint) -> None:
    worker, _ = make_worker(checkpoint, None)
    with serve(worker) as url:
        assert httpx.get(f"{url}/map").json() == {"num_layers": 4, "domains": []}
