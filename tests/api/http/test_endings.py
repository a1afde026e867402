"""Requests that end early: the client leaves, or the server shuts down."""

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import httpx
import openai
import pytest

from server.api.http.reply import Reply
from server.engine import Checkpoint, RoutingArtifact, Sequence
from server.generation import Generation
from server.tickets import QueueLimits, Ticket
from server.worker import Worker
from tests.api.live import GatedEngine, make_worker, serve, wait_until

CLIENTS = int(os.environ.get("TEST_CLIENTS", "24"))
REQUEST_STATE = (Ticket, Generation, Sequence, Reply)
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 200, "seed": 1}


@pytest.fixture
def live(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[tuple[str, Worker, GatedEngine]]:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield f"{url}/v1/chat/completions", worker, engine
        engine.gate.set()


@asynccontextmanager
async def posted(url: str, stream: bool) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield asyncio.create_task(client.post(url, json=BODY | {"stream": stream}))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_slot(live: tuple[str, Worker, GatedEngine], stream: bool) -> None:
    url, worker, engine = live
    engine.gate.clear()

    async def leave() -> None:
        async with posted(url, stream) as request:
            await asyncio.to_thread(wait_until, lambda: engine.num_steps > 0)
            request.cancel()

    asyncio.run(leave())
    wait_until(lambda: not worker.tickets.open)
    engine.gate.set()
    wait_until(lambda: not worker.generations)
    assert engine.num_running == engine.num_waiting == 0
    wait_until(lambda: b'knnssd_request_success_total{finished_reason="cancelled"} 1.0' in worker.metrics.render())


def test_a_client_that_leaves_in_the_middle_of_a_stream(live: tuple[str, Worker, GatedEngine]) -> None:
    url, worker, engine = live
    client = openai.OpenAI(base_url=url.removesuffix("/chat/completions"), api_key="none")
    stream = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True)
    next(iter(stream))
    engine.gate.clear()
    stream.close()
    client.close()
    wait_until(lambda: not worker.tickets.open)
    engine.gate.set()
    wait_until(lambda: not worker.generations and engine.num_running == 0)


def test_many_clients_that_leave_at_all_times_leave_nothing(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact
) -> None:
    kept_by_others = count_request_state()
    worker, engine = make_worker(checkpoint, tiny_artifact, limits=QueueLimits(CLIENTS + 1, 1_000_000))
    with serve(worker) as url:
        body = BODY | {"max_tokens": 20}
        before = httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"]
        num_tasks = len(asyncio.all_tasks(worker.loop))
        threads = {thread.name for thread in threading.enumerate()}
        asyncio.run(leave_all(f"{url}/v1/chat/completions", worker, engine))
        wait_until(lambda: not worker.tickets.open and not worker.generations)
        assert engine.num_running == engine.num_waiting == 0
        assert sorted(engine.scheduler.free_slots) == list(range(4))
        wait_until(lambda: len(asyncio.all_tasks(worker.loop)) <= num_tasks)
        new = {thread.name for thread in threading.enumerate()} - threads
        assert all(name.startswith("asyncio_") for name in new), new
        assert httpx.post(f"{url}/v1/chat/completions", json=body).json()["choices"] == before
        wait_until(lambda: not worker.tickets.open and not worker.generations)
        # The idle thread still holds its last command; until it idles, its last step too.
        wait_until(lambda: count_request_state() - kept_by_others <= Counter(Ticket=1))


def count_request_state() -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects() if type(thing) in REQUEST_STATE)


async def leave_all(url: str, worker: Worker, engine: GatedEngine) -> None:
    """Clients that leave before an answer, at its first words, and in its middle."""

    async def leave(client: httpx.AsyncClient, number: int) -> None:
        async with client.stream("POST", url, json=BODY | {"stream": True, "seed": number}) as response:
            async for _ in response.aiter_lines():
                number -= 3
                if number % 30 < 3:
                    return

    async def until(num_open: int) -> None:
        await asyncio.to_thread(wait_until, lambda: len(worker.tickets.open) == num_open)

    engine.gate.clear()
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        tasks = [asyncio.create_task(leave(client, number)) for number in range(CLIENTS)]
        await until(CLIENTS)
        for task in tasks[::3]:
            task.cancel()
        await until(CLIENTS - len(tasks[::3]))
        engine.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(result) for result in results} <= {type(None), asyncio.CancelledError}


def test_shutdown_ends_open_requests_with_an_error(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    worker, engine = make_worker(checkpoint, tiny_artifact)
    with ThreadPoolExecutor(1) as pool, serve(worker) as url:
        engine.gate.clear()
        request = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=BODY, timeout=30)
        wait_until(lambda: engine.num_steps > 0)
        worker.loop.call_soon_threadsafe(worker.abort)
        assert request.result().json()["error"]["message"] == "The server is shutting down."
        engine.gate.set()
    assert not worker.thread.is_alive()
