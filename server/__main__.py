"""`knn-ssd-server`: settings -> model and artifact -> worker -> app -> uvicorn; the only place where all meet."""

import logging
import socket
import sys
import time
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import uvicorn
from pydantic_settings import SettingsError

from server.app import create_app
from server.served_model import load
from server.settings import Settings, read_settings
from server.telemetry.metrics import Metrics
from server.worker import Worker

if TYPE_CHECKING:
    from server.telemetry.traces import Traces

logger = logging.getLogger("server")


class Server(uvicorn.Server):
    """Uvicorn that finishes running requests after SIGTERM or Ctrl-C, and stops where the model cannot be loaded.

    While it drains it still listens, so that new requests are told 503. A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, worker: Worker, drain_seconds: float, address: str) -> None:
        super().__init__(config)
        self.worker = worker
        self.drain_seconds = drain_seconds
        self.address = address
        self.stop_at: float | None = None
        self.is_announced = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop_at = time.monotonic() + (self.drain_seconds if self.stop_at is None else 0)
        self.worker.drain()

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends the server."""
        if self.stop_at is not None and (not self.worker.tickets.open or time.monotonic() >= self.stop_at):
            self.worker.abort()
            self.should_exit = True
        if self.worker.failure and not self.worker.served:
            self.should_exit = True
        if self.worker.served and not self.is_announced:
            self.is_announced = True
            logger.info("serving %s on %s", self.worker.served.name, self.address)
        return await super().on_tick(counter)


def main() -> None:
    """Runs the server until it is told to stop; a start that fails prints one line and exits with code 2."""
    try:
        settings = read_settings(sys.argv[1:])
        app_config = settings.app_config
        traces = open_traces(settings)
        listener = listen(settings.host, settings.port)
    except (SettingsError, OSError) as error:
        fail(error)
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    # What uvicorn says of its own start and stop is said here in words of this server.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    loader = partial(load, settings.source, settings.engine_config)
    worker = Worker(loader, settings.queue_limits, Metrics(), traces.observe if traces else None)
    config = uvicorn.Config(
        create_app(worker, app_config), log_config=None, access_log=False, timeout_graceful_shutdown=5
    )
    host, port = listener.getsockname()[:2]
    server = Server(config, worker, settings.drain_seconds, f"http://{host}:{port}")
    server.run(sockets=[listener])
    if traces:
        traces.close()
    if worker.failure and not worker.served:
        fail(worker.failure)


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


def fail(error: BaseException) -> NoReturn:
    print(f"knn-ssd-server: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
