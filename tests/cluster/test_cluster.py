"""Replicas that die, come and go while requests run, on a real Ray cluster of two nodes."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest

from tests.api.live import wait_until
from tests.cluster.nodes import NUM_REPLICAS, Application, body, wait_long

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own

NUM_STREAMS = 20
SLOTS = 8
"""Of each replica."""
LONG = 8000


def test_errors_have_the_form_of_their_endpoint(base_url: str) -> None:
    refused = httpx.post(f"{base_url}/v1/completions", json=body("a", 1, nonsense=1))
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "nonsense"
    assert httpx.post(f"{base_url}/v1/messages", json={}).json()["type"] == "error"
    assert httpx.get(f"{base_url}/nowhere").json()["error"]["code"] == "unknown_url"
    assert httpx.post(f"{base_url}/v1/completions", content=b"x" * (5 << 20)).status_code == 413


def test_a_request_has_one_name(base_url: str) -> None:
    headers = httpx.get(f"{base_url}/v1/models", headers={"x-request-id": "mine"}).headers
    assert headers.get_list("x-request-id") == ["mine"]


def test_conversations_stay_where_they_were_read(client: openai.OpenAI, application: Application) -> None:
    def cached_tokens(name: str) -> int:
        messages: list[Any] = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"{name} {turn} " * 20})
            answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
            messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        details = answer.usage.prompt_tokens_details if answer.usage else None
        return (details and details.cached_tokens) or 0

    assert all(cached_tokens(name) > 200 for name in ("ant", "bee", "cat", "dog"))
    assert application.total("knnssd_ingress_routed_total", 'reason="prefix"') > 0


def test_both_replicas_answer_alike(base_url: str, application: Application) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: httpx.post(f"{base_url}/v1/completions", json=body("a", 40)), range(16)))
    assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1
    assert len(application.replicas()) == NUM_REPLICAS


def test_a_client_that_leaves_frees_its_place(base_url: str, application: Application) -> None:
    with httpx.stream("POST", f"{base_url}/v1/completions", json=body("a", LONG, stream=True), timeout=60) as response:
        next(response.iter_raw())
    wait_until(lambda: application.total("knnssd_num_requests_running") == 0)
    assert application.total("knnssd_request_success_total", 'finished_reason="cancelled"') > 0


def test_scaling_up_and_down_loses_nothing(base_url: str, application: Application) -> None:
    stopping = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=60) as http:
            while not stopping.is_set():
                statuses.append(http.post(f"{base_url}/v1/completions", json=body("b", 100)).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        application.deploy(NUM_REPLICAS + 1)
        application.deploy(NUM_REPLICAS)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert len(statuses) > 20 and set(statuses) == {200}


AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": NUM_REPLICAS + 1,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 0.5,
    "downscale_delay_s": 1,
    "metrics_interval_s": 0.5,
    "look_back_period_s": 1,
    "policy": {"policy_function": "server.cluster.autoscaling:by_sequences"},
}


def test_there_are_as_many_replicas_as_sequences_need(base_url: str, application: Application) -> None:
    application.configure({"autoscaling_config": AUTOSCALING})
    stopping = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        with httpx.Client(timeout=120) as http:
            while not stopping.is_set():
                statuses.append(http.post(f"{base_url}/v1/completions", json=body("c", 500)).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    try:
        wait_long(lambda: len(application.replicas()) == 1)
        for thread in threads:
            thread.start()
        wait_long(lambda: len(application.replicas()) == NUM_REPLICAS + 1)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    wait_long(lambda: len(application.replicas()) == 1)
    assert set(statuses) == {200}
    application.deploy(NUM_REPLICAS)


def test_a_replica_that_is_killed_takes_only_its_own_streams_with_it(base_url: str, application: Application) -> None:
    first_tokens: list[int] = []

    def stream(number: int) -> list[str]:
        """The data of its events."""
        fields = body(f"stream {number}", LONG, stream=True)
        events: list[str] = []
        with httpx.stream("POST", f"{base_url}/v1/completions", json=fields, timeout=120) as response:
            for line in response.iter_lines():
                if line and not events:
                    first_tokens.append(number)
                events += [line.removeprefix("data: ")] if line else []
        return events

    before, lost = application.replicas(), application.total("knnssd_ingress_lost_total")
    with ThreadPoolExecutor(NUM_STREAMS) as pool:
        streams = [pool.submit(stream, number) for number in range(NUM_STREAMS)]
        # The others wait for a slot.
        wait_until(lambda: len(first_tokens) >= NUM_REPLICAS * SLOTS)
        had_token = set(first_tokens)
        os.kill(application.processes()[0], signal.SIGKILL)
        # New ones are answered by who is left, as soon as there is a slot.
        assert httpx.post(f"{base_url}/v1/completions", json=body("new", 5), timeout=60).status_code == 200
        ended = [each.result() for each in streams]
    whole = {number for number, events in enumerate(ended) if events[-1] == "[DONE]"}
    errors = [json.loads(events[-1])["error"] for events in ended if events[-1] != "[DONE]"]
    assert {(error["code"], error["type"]) for error in errors} == {("unavailable", "server_error")}
    # Those of the other replica go on, and who had no token yet is answered there.
    assert len(errors) <= SLOTS and whole >= set(range(NUM_STREAMS)) - had_token
    assert application.total("knnssd_ingress_lost_total") - lost >= len(errors)
    wait_long(lambda: len(application.replicas() - before) == 1 and len(application.replicas()) == NUM_REPLICAS)
