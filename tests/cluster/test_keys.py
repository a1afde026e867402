"""Replicas for clients with keys: limits that hold for all together, kills, stops, and traces through the hop."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from pydantic_settings import SettingsError

from server.settings import Settings
from tests.api.live import wait_until
from tests.cluster.nodes import NUM_REPLICAS, Application, Nodes, body, free_port, wait_long
from tests.telemetry.collector import Received, collecting, spans_of

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

AT_ONCE, PER_MINUTE = 2, 30
LONG = 8000
SECONDS_AFTER_A_DEATH = 10
"""In which a new request is to be answered."""
TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

Ask = Callable[..., openai.Stream[Any]]


@pytest.fixture(scope="module")
def collector() -> Iterator[tuple[Received, str]]:
    with collecting() as told:
        yield told


@pytest.fixture(scope="module")
def limited(
    application: Application, nodes: Nodes, collector: tuple[Received, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Application]:
    """Replicas beside those of the other tests, for four keys with limits."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first\nsecond\nhasty\nthird\n")
    changes: dict[str, Any] = {
        "port": free_port(),
        "api_key_file": keys,
        "max_client_requests": AT_ONCE,
        "max_client_rate": PER_MINUTE,
        "drain_seconds": 1,
        "otlp_endpoint": collector[1],
    }
    limited = Application(nodes, "limited", application.settings.model_copy(update=changes))
    limited.deploy(NUM_REPLICAS)
    yield limited
    if limited.name in nodes.deployed:
        limited.remove()


@pytest.fixture(scope="module")
def ask(limited: Application) -> Iterator[Ask]:
    """Begins a long plain stream with a key; the client is closed at the end of the module."""
    with contextlib.ExitStack() as stack:

        def ask(key: str, num_tokens: int = LONG, **headers: str) -> openai.Stream[Any]:
            client = openai.OpenAI(base_url=f"{limited.url}/v1", api_key=key, max_retries=0, timeout=120)
            completions = stack.enter_context(client).completions
            stream = completions.create(
                model="tiny",
                prompt=f"for {key}",
                max_tokens=num_tokens,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True, "speculation": {"method": "plain"}},
                extra_headers=headers,
            )
            return stream

        yield ask


def test_a_keys_unfinished_requests_are_counted_over_all_replicas(limited: Application, ask: Ask) -> None:
    with ask("first") as one, ask("first") as two:
        assert next(iter(one)).choices and next(iter(two)).choices
        # There is room, and each replica has one of the two.
        assert limited.values("knnssd_num_requests_running") == dict.fromkeys(limited.replicas(), 1)
        with pytest.raises(openai.RateLimitError, match="may have 2 unfinished") as refused:
            ask("first")
        assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert refused.value.response.headers["retry-after"] == "1"
        assert list(ask("second", 3))
        assert limited.total("knnssd_request_rejections_total") == 0
    assert limited.total("knnssd_ingress_limited_total") == 1
    # Who has left has room again.
    wait_until(lambda: is_answered(limited, "first"))


def test_errors_of_limits_have_the_form_of_their_endpoint(limited: Application, ask: Ask) -> None:
    with ask("third"), ask("third"):
        headers = {"x-api-key": "third"}
        refused = httpx.post(f"{limited.url}/v1/messages", json={}, headers=headers)
        assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
        # What costs nothing is not counted.
        assert httpx.get(f"{limited.url}/v1/models", headers=headers).status_code == 200


def test_a_keys_rate_is_counted_over_all_replicas(limited: Application) -> None:
    """Requests that are refused for their body count as well; one more is allowed every two seconds."""
    with httpx.Client(base_url=limited.url, headers={"authorization": "Bearer hasty"}, timeout=60) as http:
        allowed = []
        while (answer := http.post("/v1/completions", json={})).status_code == 400:
            allowed.append(answer)
            assert len(allowed) < 10 * PER_MINUTE
    assert len(allowed) >= PER_MINUTE
    assert answer.status_code == 429 and answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert answer.json()["error"]["message"] == "Too many requests: a client may begin 30 a minute."
    assert 0 < int(answer.headers["retry-after-ms"]) <= 60_000 / PER_MINUTE
    assert is_answered(limited, "second")


def test_a_killed_replica_frees_places_and_new_requests_are_answered(limited: Application, ask: Ask) -> None:
    before = limited.replicas()
    with ask("first") as one, ask("first") as two, ThreadPoolExecutor(2) as pool:
        assert next(iter(one)).choices and next(iter(two)).choices
        assert not is_answered(limited, "first")
        streams = [pool.submit(error_of, stream) for stream in (one, two)]
        os.kill(limited.processes()[0], signal.SIGKILL)
        # The ingress does not know yet: those that it sends there are answered all the same.
        assert all(is_answered(limited, "second") for _ in range(10))
        cut = next(as_completed(streams, timeout=SECONDS_AFTER_A_DEATH)).result()
        assert cut is not None and cut.code == "unavailable" and "was lost" in cut.message
        assert is_answered(limited, "first")
        # The stream of the other one goes on.
        assert [each.result() for each in streams].count(None) == 1
    # No place was lost with the replica.
    with ask("first"), ask("first"):
        assert not is_answered(limited, "first")
    wait_long(lambda: len(limited.replicas() - before) == 1 and len(limited.replicas()) == NUM_REPLICAS)


def test_a_callers_trace_goes_on_at_the_ingress_and_in_the_replica(
    limited: Application, ask: Ask, collector: tuple[Received, str]
) -> None:
    assert list(ask("third", 3, traceparent=f"00-{TRACE}-{CALLER}-01"))
    wait_until(lambda: {"ingress", "text_completion tiny"} <= named(collector[0], TRACE).keys())
    found = named(collector[0], TRACE)
    assert found["ingress"]["parentSpanId"] == CALLER
    assert found["text_completion tiny"]["parentSpanId"] == found["ingress"]["spanId"]
    told = {each["key"]: each["value"] for each in found["ingress"]["attributes"]}
    assert told["knnssd.replica"]["stringValue"] in limited.replicas()
    assert told["knnssd.tries"]["intValue"] in (1, "1")


def test_without_a_caller_the_ingress_begins_the_trace(ask: Ask, collector: tuple[Received, str]) -> None:
    assert list(ask("third", 3))

    def own() -> list[dict[str, Any]]:
        return [span for span in spans_of(collector[0]) if span["name"] == "ingress" and not span.get("parentSpanId")]

    wait_until(lambda: bool(own()))
    trace = own()[-1]["traceId"]
    wait_until(lambda: "text_completion tiny" in named(collector[0], trace))
    assert named(collector[0], trace)["text_completion tiny"]["parentSpanId"] == own()[-1]["spanId"]


def test_a_replica_that_is_not_needed_ends_long_streams_with_a_clear_error(limited: Application, ask: Ask) -> None:
    with ask("first") as one, ask("second") as two, ThreadPoolExecutor(2) as pool:
        assert next(iter(one)).choices and next(iter(two)).choices
        streams = [pool.submit(error_of, stream) for stream in (one, two)]
        limited.configure({"num_replicas": 1})
        cut = next(as_completed(streams, timeout=60)).result()
        assert cut is not None and cut.code == "unavailable" and cut.message == "The server is shutting down."
        assert [each.result() for each in streams].count(None) == 1
    wait_long(lambda: len(limited.replicas()) == 1)


def test_an_application_that_stops_ends_long_streams_with_a_clear_error(limited: Application, ask: Ask) -> None:
    with ask("first") as stream, ThreadPoolExecutor(1) as pool:
        assert next(iter(stream)).choices
        ending = pool.submit(error_of, stream)
        limited.remove()
        error = ending.result()
    assert error is not None and error.code == "unavailable" and error.message == "The server is shutting down."


@pytest.mark.parametrize("options", [{"num_replicas": 2}, {"autoscaling_config": {"max_replicas": 3}}])
def test_limits_are_not_counted_by_several_ingresses(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    serve = pytest.importorskip("ray.serve", reason="needs the extra ray")
    from ray.serve._private.config import DeploymentConfig

    from server.cluster.ingress import check_alone

    context = SimpleNamespace(_deployment_config=DeploymentConfig(**options))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    with pytest.raises(SettingsError, match="num_replicas of the deployment Ingress to 1"):
        check_alone(Settings(max_client_rate=1))
    check_alone(Settings())


def is_answered(application: Application, key: str) -> bool:
    """Whether a short request gets its answer in time; False where it is refused for the key's limits."""
    headers = {"authorization": f"Bearer {key}"}
    url = f"{application.url}/v1/completions"
    answer = httpx.post(url, json=body("hi", 3), headers=headers, timeout=SECONDS_AFTER_A_DEATH)
    assert answer.status_code in (200, 429), answer.text
    return answer.status_code == 200


def error_of(stream: openai.Stream[Any]) -> openai.APIError | None:
    """What ends a stream before its end; None where nothing does."""
    try:
        for _ in stream:
            pass
    except openai.APIError as error:
        return error
    return None


def named(received: Received, trace: str) -> dict[str, dict[str, Any]]:
    return {span["name"]: span for span in spans_of(received) if span["traceId"] == trace}
