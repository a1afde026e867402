"""The Serve application: an ingress before replicas, from the same settings as a server of its own."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsError
from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from server.cluster.ingress import Ingress
from server.cluster.replica import Replica
from server.settings import Settings, clear

ROUTER = "server.cluster.router:CallRouter"
MOST_STARTS = 2
"""A model that cannot be loaded twice is not loaded the third time either."""
MARGIN = 5.0
"""Seconds to stop in, beyond those that running requests get."""
HEALTH_SECONDS = 2.0


def app(args: Mapping[str, Any]) -> Application:
    """What `serve run server.cluster:app` serves; `args` of a config file have the names of settings, as `max_batch`.

    The ingress listens itself where a port is given. Raises `SettingsError` with one clear line.
    """
    try:
        settings = Settings(**args)
    except ValidationError as error:
        raise clear(error) from error
    if settings.history_file:
        raise SettingsError("--history-file (KNNSSD_HISTORY_FILE): is of one server, not of replicas; leave it out")
    return application(settings, listens="port" in settings.model_fields_set)


def application(settings: Settings, listens: bool, num_replicas: int = 1, threads: int | None = None) -> Application:
    """Replicas named `Replica`, each with CPUs of its own, and one ingress; a config file may change the numbers."""
    replicas = serve.deployment(
        Replica,
        num_replicas=num_replicas,
        max_constructor_retry_count=MOST_STARTS,
        # Requests do not pass through Serve, and are limited by the replica itself.
        max_ongoing_requests=settings.queue_limits.max_sequences,
        ray_actor_options={"num_cpus": threads or settings.threads or 1},
        # It stops by itself where it has nothing left to do.
        graceful_shutdown_timeout_s=settings.drain_seconds + MARGIN,
        graceful_shutdown_wait_loop_s=0.1,
        health_check_period_s=HEALTH_SECONDS,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    ).bind(settings)
    ingress = serve.deployment(
        Ingress,
        ray_actor_options={"num_cpus": 0},
        max_replicas_per_node=1,
        max_ongoing_requests=settings.max_connections,
        graceful_shutdown_timeout_s=settings.drain_seconds + MARGIN,
        graceful_shutdown_wait_loop_s=0.1,
    )
    return ingress.bind(replicas, settings, listens)
