"""Turns between clients over HTTP: by key where there are keys, else by address; who leaves makes room at once."""

import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from server.app import AppConfig
from server.engine import Checkpoint
from server.tickets import QueueLimits
from tests.api.live import make_worker, serve, wait_until
from tests.attacks import request

CROWD = {"model": "tiny", "prompt": ["hi"] * 60, "max_tokens": 40, "ignore_eos": True, "temperature": 0}
ONE = {"model": "tiny", "prompt": "ho", "max_tokens": 3, "ignore_eos": True}


@pytest.mark.parametrize("keys", [("a", "b"), ()])
def test_who_comes_after_a_crowd_is_answered_before_it(checkpoint: Checkpoint, keys: tuple[str, ...]) -> None:
    worker, engine = make_worker(checkpoint, None, max_batch=2, limits=QueueLimits(16, 10_000))
    ended: list[str] = []

    def ask(body: dict[str, object], key: str, address: str) -> None:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
            response = client.post(f"{url}/v1/completions", json=body)
        assert response.status_code == 200, response.text
        ended.append(key)

    with serve(worker, AppConfig(api_keys=keys)) as url, ThreadPoolExecutor(2) as pool:
        engine.gate.clear()
        crowd = pool.submit(ask, CROWD, "a", "127.0.0.1")
        wait_until(lambda: engine.num_waiting == 60)
        one = pool.submit(ask, ONE, "b", "127.0.0.1" if keys else "127.0.0.2")
        wait_until(lambda: len(worker.tickets.open) == 2 and not worker.inbox.empty())
        engine.gate.set()
        one.result(), crowd.result()
    assert ended == ["b", "a"]


def test_a_client_that_leaves_gives_its_slots_and_places_back_at_once(checkpoint: Checkpoint) -> None:
    worker, engine = make_worker(checkpoint, None, max_batch=2)
    with serve(worker) as url:
        engine.gate.clear()
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(request("/v1/completions", CROWD))
            wait_until(lambda: engine.num_waiting == 60)
        wait_until(lambda: not worker.tickets.open)
        steps = engine.num_steps
        engine.gate.set()
        wait_until(lambda: not engine.has_work and not worker.generations)
        assert engine.num_steps <= steps + 1, "the step that was under way is the last one"
        assert sorted(engine.scheduler.free_slots) == [0, 1]
