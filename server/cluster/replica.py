"""A replica: one model, its worker and the whole application over it, on a port that the ingress knows."""

import asyncio
import time
from dataclasses import replace

import ray
import uvicorn
from ray import serve

from server.api.http.client_limits import ClientLimits
from server.api.http.connection import http_config, listen
from server.app import create_app
from server.cluster.share import Share
from server.settings import Settings
from server.start import new_worker, open_traces
from server.telemetry.logs import start_logging

ANYONE = "*"
"""Whose word for a client's address is taken: only the ingress is to reach the port."""
POLL_SECONDS = 0.02


class Replica:
    """Serves what `settings` say on the CPUs that Serve gives it; it is there once the model is loaded."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        start_logging(settings.log_level, settings.log_format)
        self.settings = settings
        self.traces = open_traces(settings)
        self.worker = new_worker(settings, Share.of_this_replica().applied(settings.source), self.traces)
        # Browsers are let in by the ingress, which counts a client's requests for all replicas.
        config = replace(settings.app_config, cors_origins=(), client_limits=ClientLimits())
        app = create_app(self.worker, config)
        listener = listen(ray.util.get_node_ip_address(), 0)
        host, port = listener.getsockname()[:2]
        self.url = f"http://{host}:{port}"
        self.server = uvicorn.Server(http_config(app, settings.connection_limits, ANYONE))
        self.serving = asyncio.ensure_future(self.server.serve(sockets=[listener]))
        while self.worker.served is None:
            await asyncio.sleep(POLL_SECONDS)
            if self.worker.failure:
                raise self.worker.failure

    def record_replica_metadata(self) -> dict[str, str]:
        """Called by Serve, which tells the ingress."""
        return {"url": self.url}

    async def metrics(self) -> tuple[str, bytes]:
        """This replica's name and its metrics in Prometheus's text form."""
        return serve.get_replica_context().replica_id.unique_id, self.worker.metrics.render()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve, for `server.cluster.autoscaling`."""
        return {"sequences": float(self.worker.tickets.num_unfinished)}

    async def check_health(self) -> None:
        """Called by Serve, which replaces a replica where this raises."""
        self.worker.check_progress(self.settings.step_timeout)
        if self.worker.failure:
            raise self.worker.failure

    async def __del__(self) -> None:
        """Called by Serve when no request comes any more; those that run get their time to finish, then an error."""
        self.worker.drain()
        stop_at = time.monotonic() + self.settings.drain_seconds
        while self.worker.tickets.open and time.monotonic() < stop_at:
            await asyncio.sleep(POLL_SECONDS)
        self.worker.abort()
        self.server.should_exit = True
        await self.serving
        if self.traces:
            self.traces.close()
