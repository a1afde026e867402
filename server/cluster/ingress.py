"""The ingress's deployment: keys, limits, errors and log as on any server, and behind them the way to the replicas."""

import asyncio
import logging
import math

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic_settings import SettingsError
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.api.http.auth import ANTHROPIC_HEADER
from server.api.http.connection import http_config, listen
from server.app import layers
from server.cluster.affinity import Affinity
from server.cluster.forwarding import Forwarding
from server.cluster.ingress_metrics import IngressMetrics
from server.settings import Settings
from server.start import open_traces
from server.telemetry.logs import start_logging

logger = logging.getLogger(__name__)

PATIENCE = 2.0
"""Seconds in which the replicas have to answer what monitoring asks, and to end what runs when their time is over."""


@serve.ingress()
class Ingress:
    """Owns no model; `replicas` is the handle of those that do.

    Requests come from Serve's proxies and, where it `listens`, at the address of the settings: a proxy takes some
    milliseconds for each token that it passes on.
    """

    async def __init__(self, replicas: DeploymentHandle, settings: Settings, listens: bool) -> None:  # type: ignore[misc]  # Serve awaits it
        start_logging(settings.log_level, settings.log_format)
        self.replicas = replicas
        self.settings = settings
        check_alone(settings)
        self.counts = IngressMetrics(replicas.deployment_name)
        self.traces = open_traces(settings)
        config = settings.app_config
        affinity = Affinity(settings.routing != "load", settings.routing == "domain")
        timeout = config.request_timeout
        forwarding = Forwarding(replicas, affinity, self.counts, self.owner, timeout, self.traces)
        middleware = layers(config, self.counts.errors.inc, self.counts.limited.inc)
        routes = [Route("/health", self.health), Route("/metrics", self.metrics), Mount("/", forwarding)]
        self.application = Starlette(routes=routes, middleware=middleware)
        self.server: uvicorn.Server | None = None
        if listens:
            self.server = uvicorn.Server(http_config(self.application, settings.connection_limits))
            self.serving = asyncio.ensure_future(self.server.serve(sockets=[listen(settings.host, settings.port)]))

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return Unnamed(self.application)

    async def __del__(self) -> None:
        """Called by Serve when it stops; what is being answered gets its time to finish."""
        if self.server:
            self.server.config.timeout_graceful_shutdown = math.ceil(self.settings.drain_seconds + PATIENCE)
            self.server.should_exit = True
            await self.serving
        if self.traces:
            self.traces.close()

    def owner(self, headers: Headers) -> str:
        """What stands for the key; empty where all share their texts."""
        config = self.settings.app_config
        is_shared = config.shares_history or not config.api_keys
        return "" if is_shared else headers.get("authorization") or headers.get(ANTHROPIC_HEADER, "")

    async def health(self, request: Request) -> Response:
        """200 as long as the ingress lives: Serve itself replaces replicas."""
        return JSONResponse({"status": "alive"})

    async def metrics(self, request: Request) -> Response:
        """Its own alone while a replica is missing that was there a moment ago."""
        try:
            answers = await self.replicas.broadcast("metrics").results_async(timeout_s=PATIENCE)
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the replicas' metrics are missing: %s", type(error).__name__)
            answers = []
        text = self.counts.render(dict(answers))
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def check_alone(settings: Settings) -> None:
    """Raises `SettingsError` where a client's requests would be counted by several ingresses, each for itself."""
    deployed = serve.get_replica_context()._deployment_config
    scaling = deployed.autoscaling_config
    most = scaling.max_replicas if scaling else deployed.num_replicas
    if settings.app_config.client_limits and most > 1:
        raise SettingsError(
            f"--max-client-requests and --max-client-rate are counted in one ingress, and there may be {most}: set "
            "num_replicas of the deployment Ingress to 1, or leave the limits out"
        )


class Unnamed:
    """Leaves the name of a request out of its answer: Serve's proxies write it there as well."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_unnamed(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self.app(scope, receive, send_unnamed)
