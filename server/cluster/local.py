"""`knn-ssd-server --replicas N`: a Ray cluster of this machine alone, for as long as the command runs."""

import logging
import os
import signal
import threading

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray import serve

from server.cluster.application import application
from server.engine import use_threads
from server.settings import Settings

logger = logging.getLogger("server")

STORE_BYTES = 80 << 20
"""Ray's store of objects, the least that it takes: nothing large passes through it."""
SECONDS = 1.0


def serve_here(settings: Settings, num_replicas: int) -> None:
    """Serves until SIGTERM, SIGHUP or Ctrl-C; running requests get their time to finish.

    Raises `RuntimeError` where the replicas cannot start.
    """
    stopping = threading.Event()
    num_threads = settings.threads or max(1, use_threads(None).count // num_replicas)
    # Ray logs in as many lines as a start has steps.
    ray.init(
        num_cpus=num_threads * num_replicas,
        include_dashboard=False,
        object_store_memory=STORE_BYTES,
        logging_level=logging.WARNING,
    )
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        serve.start(proxy_location="Disabled")
        serve.run(application(settings, True, num_replicas, num_threads), name="knn-ssd", route_prefix=None)
        logger.info("serving %d replicas on http://%s:%d", num_replicas, settings.host, settings.port)
        while not stopping.wait(SECONDS):
            pass
    finally:
        serve.shutdown()
        ray.shutdown()
