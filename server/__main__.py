"""`knn-ssd-server`: settings -> model and artifact -> worker -> app -> uvicorn; the only place where all meet."""

import asyncio
import gc
import logging
import signal
import socket
import sys
import threading
import time
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from pydantic_settings import SettingsError

from server.api.http.connection import BACKLOG, http_config
from server.app import create_app
from server.engine import EngineConfig, Wishes
from server.served_model import ServedModel, Source, load
from server.settings import Settings, read_settings
from server.telemetry.logs import start_logging
from server.telemetry.metrics import Metrics
from server.worker import Worker

if TYPE_CHECKING:
    from server.telemetry.traces import Traces

logger = logging.getLogger("server")


class Server(uvicorn.Server):
    """Uvicorn that finishes running requests after SIGTERM, SIGHUP or Ctrl-C, and stops where the engine cannot go on.

    While it drains it still listens, so that new requests are told 503. A second signal ends it at once. A step of the
    engine that takes longer than `step_timeout` seconds ends it too: whoever runs it starts it again.
    """

    def __init__(
        self, config: uvicorn.Config, worker: Worker, drain_seconds: float, address: str, step_timeout: float = 300.0
    ) -> None:
        super().__init__(config)
        self.worker = worker
        self.drain_seconds = drain_seconds
        self.step_timeout = step_timeout
        self.address = address
        self.stop_at: float | None = None
        self.is_announced = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(on_loop_error)
        # Whoever started it with nohup wants it to outlive the terminal.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop_at = time.monotonic() + (self.drain_seconds if self.stop_at is None else 0)
        self.worker.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends the server."""
        self.worker.check_progress(self.step_timeout)
        if self.stop_at is not None and (not self.worker.tickets.open or time.monotonic() >= self.stop_at):
            self.worker.abort()
            self.should_exit = True
        if self.worker.failure:
            self.should_exit = True
        if self.worker.served and not self.is_announced:
            self.is_announced = True
            logger.info("serving %s on %s", self.worker.served.name, self.address)
        return await super().on_tick(counter)


def on_loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """One line where no connection can be accepted: asyncio says so with a traceback for each."""
    if "out of system resource" in context["message"]:
        logger.debug("no connection is accepted for a second: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)


def main() -> None:
    """Runs the server until it is told to stop.

    A start that fails prints one line and exits with code 2; an engine that cannot go on ends the process with code 1.
    """
    try:
        settings = read_settings(sys.argv[1:])
        app_config = settings.app_config
        traces = open_traces(settings)
        listener = listen(settings.host, settings.port)
    except (SettingsError, OSError) as error:
        fail(error)
    start_logging(settings.log_level, settings.log_format)
    loader = partial(load_for_long, settings.source, settings.engine_config, settings.wishes)
    worker = Worker(loader, settings.queue_limits, Metrics(), traces.observe if traces else None)
    config = http_config(create_app(worker, app_config), settings.connection_limits)
    host, port = listener.getsockname()[:2]
    server = Server(config, worker, settings.drain_seconds, f"http://{host}:{port}", settings.step_timeout)
    server.run(sockets=[listener])
    if traces:
        traces.close()
    if worker.failure:
        fail(worker.failure, 1 if worker.has_served else 2)


def load_for_long(source: Source, config: EngineConfig, wishes: Wishes) -> ServedModel:
    """Loads a model, and has garbage collections pass over all that is there by now.

    One that walks through it, some 700,000 objects of torch and transformers, holds up every thread for a third of a
    second.
    """
    served = load(source, config, wishes)
    gc.collect()
    gc.freeze()
    # How many objects a collection finds decides when the next one comes.
    gc.collect()
    return served


def open_traces(settings: Settings) -> "Traces | None":
    """Raises `SettingsError` where traces are asked for and their packages are not installed."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from server.telemetry.traces import to_collector
    except ModuleNotFoundError as error:
        raise SettingsError("--otlp-endpoint needs the extra otel: pip install 'knn-ssd-server[otel]'") from error
    return to_collector(settings.source.name, settings.otlp_endpoint)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; raises `OSError` that names the address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (while")[0]
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error
    # Connections inherit it. Without it a small write waits up to 40 ms for the acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def fail(error: BaseException, code: int = 2) -> NoReturn:
    print(f"knn-ssd-server: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
