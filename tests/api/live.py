"""A live server on a free port, and an engine whose steps the test lets through one by one."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import uvicorn

from server.__main__ import listen
from server.app import AppConfig, create_app
from server.deployment import Deployment
from server.engine import Checkpoint, Decoder, Emission, Engine, EngineConfig, RoutingArtifact, StepStats, TextCodec
from server.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker


class GatedEngine(Engine):
    """The real engine, held between steps while the gate is shut; `error` is raised by the next step."""

    def __init__(self, model: Decoder, config: EngineConfig, artifact: RoutingArtifact | None = None) -> None:
        super().__init__(model, config, artifact)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.num_steps = 0

    def step(self) -> tuple[list[Emission], StepStats]:
        self.num_steps += 1
        self.gate.wait(30)
        if self.error:
            raise self.error
        return super().step()


def make_worker(
    checkpoint: Checkpoint,
    artifact: RoutingArtifact | None,
    *,
    max_batch: int = 4,
    limits: QueueLimits | None = None,
) -> tuple[Worker, GatedEngine]:
    """A worker for the tiny model, and its engine."""
    engine = GatedEngine(
        Decoder(checkpoint), EngineConfig(max_batch=max_batch, baseline_share=0, is_adaptive=False), artifact
    )
    deployment = Deployment("tiny", checkpoint, TextCodec(checkpoint.tokenizer), engine)
    return Worker(lambda: deployment, limits or QueueLimits(64, 100_000), Metrics()), engine


@contextlib.contextmanager
def serve(worker: Worker, config: AppConfig | None = None) -> Iterator[str]:
    """The base URL of a running server; it is stopped at the end, and its thread with it."""
    listener = listen("127.0.0.1", 0)
    app = create_app(worker, config or AppConfig())
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started and worker.unavailable != "loading")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    """Polls for half a minute, far longer than anything here takes."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")
