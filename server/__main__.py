"""`knn-ssd-server`: settings -> model and artifact -> worker -> app -> uvicorn; the only place where all meet."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from pydantic_settings import SettingsError

from server.api.http.connection import BACKLOG, http_config, listen
from server.app import create_app
from server.settings import Settings, read_settings
from server.start import new_worker, open_traces
from server.telemetry.logs import start_logging
from server.worker import Worker

logger = logging.getLogger("server")
ENDING_SECONDS = 1.0
"""For a thread that was told to end, or is about to."""


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
    """Runs the server, or replicas of it, until it is told to stop.

    A start that fails prints one line and exits with code 2; an engine that cannot go on ends the process with code 1.
    """
    try:
        settings = read_settings(sys.argv[1:])
        if settings.replicas:
            start_logging(settings.log_level, settings.log_format)
            serve_replicas(settings, settings.replicas)
            return
        app_config = settings.app_config
        traces = open_traces(settings)
        listener = listen(settings.host, settings.port)
    except (SettingsError, OSError) as error:
        fail(error)
    start_logging(settings.log_level, settings.log_format)
    worker = new_worker(settings, settings.source, traces)
    config = http_config(create_app(worker, app_config), settings.connection_limits)
    host, port = listener.getsockname()[:2]
    server = Server(config, worker, settings.drain_seconds, f"http://{host}:{port}", settings.step_timeout)
    server.run(sockets=[listener])
    if traces:
        traces.close()
    if worker.failure:
        tell(worker.failure)
    leave(worker, 0 if not worker.failure else 1 if worker.has_served else 2)


def leave(worker: Worker, code: int) -> None:
    """Ends the process; returns where nothing went wrong and nothing is left that runs.

    A thread that still loads a model, or hangs in a step, cannot be ended. When such a thread next asks for the
    interpreter and that is gone, Python unwinds it out of the middle of torch, on which C++ ends the process by an
    abort. So the process ends without that.
    """
    if worker.thread.is_alive():
        worker.thread.join(ENDING_SECONDS)
    if worker.thread.is_alive():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def serve_replicas(settings: Settings, num_replicas: int) -> None:
    """Raises `SettingsError` where Ray is not installed, or no replica can start."""
    try:
        from server.cluster.local import serve_here
    except ModuleNotFoundError as error:
        raise SettingsError("--replicas needs the extra ray: pip install 'knn-ssd-server[ray]'") from error
    try:
        serve_here(settings, num_replicas)
    except RuntimeError as error:
        raise SettingsError(f"the replicas cannot start: {error}") from error


def fail(error: BaseException) -> NoReturn:
    tell(error)
    sys.exit(2)


def tell(error: BaseException) -> None:
    """One line on stderr."""
    print(f"knn-ssd-server: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)


if __name__ == "__main__":
    main()
