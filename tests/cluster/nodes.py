"""Two Ray nodes on one machine, and who runs there."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from server.settings import Settings

NUM_REPLICAS = 2
CPUS_OF_A_NODE = 2
STORE_BYTES = 80 << 20


class Nodes:
    """The cluster, and the address of its ingress."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = f"http://{settings.host}:{settings.port}"

    @classmethod
    @contextlib.contextmanager
    def started(cls, settings: Settings) -> Iterator["Nodes"]:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        own: dict[str, Any] = {"num_cpus": CPUS_OF_A_NODE, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
        try:
            cluster.add_node(**own)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            serve.start(proxy_location="HeadOnly", http_options={"port": free_port()})
            yield cls(settings)
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()

    def deploy(self, num_replicas: int) -> None:
        """Returns once so many replicas are there; those that were there go on."""
        self.configure({"num_replicas": num_replicas})
        wait_long(lambda: len(self.replicas()) == num_replicas)

    def configure(self, replicas: dict[str, Any]) -> None:
        """Deploys the application with these options of its replicas, as `serve deploy` does."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        application = {
            "name": "default",
            "route_prefix": "/",
            "import_path": "server.cluster:app",
            "args": self.settings.model_dump(mode="json", exclude_unset=True),
            "deployments": [{"name": "Replica", **replicas}],
        }
        _get_global_client().deploy_apps(ServeDeploySchema.model_validate({"applications": [application]}))

    def replicas(self) -> set[str]:
        """Their names, as the metrics have them."""
        try:
            text = httpx.get(f"{self.url}/metrics", timeout=30).text
        except httpx.TransportError:
            return set()
        lines = [line for line in text.splitlines() if line.startswith("knnssd_worker_up{")]
        return {line.partition('replica="')[2].partition('"')[0] for line in lines}


def wait_long(condition: Callable[[], bool]) -> None:
    """Polls for three minutes: processes start, and load torch, on a machine that may be busy."""
    for _ in range(900):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not happen")


def replica_processes() -> list[int]:
    """Process ids of the replicas, each of which Ray names in its command line."""
    return [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and command(folder).startswith("ray::ServeReplica:default:Replica")
    ]


def command(folder: Path) -> str:
    """Empty where the process has ended meanwhile."""
    with contextlib.suppress(OSError):
        return (folder / "cmdline").read_bytes().decode(errors="replace")
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
