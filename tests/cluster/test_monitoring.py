"""A real Prometheus reads a real ingress: each panel of replicas has data, and an alert says which one was lost."""

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.cluster.nodes import NUM_REPLICAS, Application, body, wait_long
from tests.telemetry.prometheus import expressions, run_prometheus

MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING} of Debian's package prometheus"),
]
NUM_CLIENTS = 4


def test_prometheus_sees_each_replica_and_tells_which_one_was_lost(application: Application, tmp_path: Path) -> None:
    stopping = threading.Event()

    def ask(number: int) -> None:
        """Chats whose turns begin alike; one that dies with its replica is the point of this test."""
        with httpx.Client(base_url=application.url, timeout=60) as http:
            while not stopping.is_set():
                http.post("/v1/completions", json=body(f"{number} " * 100, 200))

    target = application.url.removeprefix("http://")
    with (
        run_prometheus(tmp_path, [target], name="cluster.yml") as prometheus,
        ThreadPoolExecutor(NUM_CLIENTS) as pool,
    ):
        clients = [pool.submit(ask, number) for number in range(NUM_CLIENTS)]
        try:
            assert not prometheus.lacks(expressions("replicas"))
            before = application.replicas()
            alive = {series["metric"]["instance"] for series in prometheus.query("knnssd_worker_up == 1")}
            assert alive == before and len(before) == NUM_REPLICAS
            assert not {alert for alert in prometheus.firing() if alert[0] in ("KnnssdReplicaLost", "KnnssdNoReplica")}
            wait_long(lambda: all(application.values("knnssd_num_requests_running").values()))
            os.kill(application.processes()[0], signal.SIGKILL)
            wait_long(lambda: any(alert == "KnnssdReplicaLost" for alert, _ in prometheus.firing()))
            named = {instance for alert, instance in prometheus.firing() if alert == "KnnssdReplicaLost"}
            wait_long(lambda: len(application.replicas()) == NUM_REPLICAS)
        finally:
            stopping.set()
        assert named == before - application.replicas()
    for client in clients:
        client.result()
