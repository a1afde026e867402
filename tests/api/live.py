"""A live server on a free port, and an engine whose steps the test lets through one by one."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import uvicorn

from server.api.http.connection import ConnectionLimits, http_config, listen
from server.app import AppConfig, create_app
from server.engine import (
    Checkpoint,
    Decoder,
    DraftWeights,
    Emission,
    Engine,
    EngineConfig,
    RoutingArtifact,
    StepStats,
    TextCodec,
    add_draft,
)
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker


class GatedEngine(Engine):
    """The real engine, held between steps while the gate is shut.

    `error` is raised by the next step; at step `fatal_step` the engine dies, and `shut_at_step` shuts the gate.
    """

    def __init__(self, model: Decoder, config: EngineConfig, artifact: RoutingArtifact | None = None) -> None:
        super().__init__(model, config, artifact)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.num_steps = 0
        self.fatal_step: int | None = None
        self.shut_at_step: int | None = None

    def step(self) -> tuple[list[Emission], StepStats]:
        self.num_steps += 1
        if self.num_steps == self.shut_at_step:
            self.gate.clear()
        self.gate.wait(30)
        if self.error or self.num_steps == self.fatal_step:
            raise self.error or RuntimeError("secret detail")
        return super().step()


def make_worker(
    checkpoint: Checkpoint,
    artifact: RoutingArtifact | None,
    *,
    max_batch: int = 4,
    limits: QueueLimits | None = None,
    draft_weights: DraftWeights = "none",
) -> tuple[Worker, GatedEngine]:
    """A worker for the tiny model, and its first engine; where that fails, the worker makes others."""
    model = Decoder(checkpoint)
    add_draft(model, checkpoint, draft_weights)
    config = EngineConfig(max_batch=max_batch, baseline_share=0, is_adaptive=False)
    engines = [GatedEngine(model, config, artifact)]

    def load() -> ServedModel:
        engine = engines.pop() if engines else GatedEngine(model, config, artifact)
        return ServedModel("tiny", checkpoint, TextCodec(checkpoint.tokenizer), engine)

    return Worker(load, limits or QueueLimits(64, 100_000), Metrics()), engines[0]


def lose_model(worker: Worker) -> None:
    """From now on the worker cannot load its model again: an engine that fails is the end of it."""

    def load() -> ServedModel:
        raise OSError("the disk is gone")

    worker.load = load


@contextlib.contextmanager
def serve(
    worker: Worker,
    config: AppConfig | None = None,
    limits: ConnectionLimits | None = None,
    send_buffer: int | None = None,
    is_awaited: bool = True,
) -> Iterator[str]:
    """The base URL of a running server; it is stopped at the end, and its thread with it.

    `send_buffer` is how many bytes its system keeps for a client that does not read. A server that is not awaited
    may still be loading its model.
    """
    listener = listen("127.0.0.1", 0)
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    app = create_app(worker, config or AppConfig())
    server = uvicorn.Server(http_config(app, limits or ConnectionLimits()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started and not (is_awaited and worker.unavailable == "loading"))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def serve_full(checkpoint: Checkpoint) -> Iterator[str]:
    """The base URL of a server whose queue is full until it has refused a request."""
    worker, engine = make_worker(checkpoint, None, limits=QueueLimits(1, 1000))
    not_refused = b'knnssd_request_rejections_total{reason="queue_full"} 0.0'
    with serve(worker) as url, ThreadPoolExecutor(2) as pool:
        engine.gate.clear()
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 1}
        held = pool.submit(httpx.post, f"{url}/v1/completions", json=body, timeout=30)
        wait_until(lambda: engine.num_steps > 0)

        def open_at_the_first_refusal() -> None:
            try:
                wait_until(lambda: not_refused not in worker.metrics.render())
            finally:
                engine.gate.set()

        opening = pool.submit(open_at_the_first_refusal)
        yield url
        opening.result()
        assert held.result().status_code == 200


def sent_events(response: httpx.Response) -> list[dict[str, Any]]:
    """The data of a stream's events, of any of the forms."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls for half a minute, far longer than anything here takes."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
