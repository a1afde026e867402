"""Two Ray nodes on one machine, and what runs there: applications, each with an ingress and replicas of its own."""

import contextlib
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from server.settings import Settings

NUM_REPLICAS = 2
CPUS_OF_A_NODE = 2
STORE_BYTES = 80 << 20


class Nodes:
    """The cluster, and all that is deployed on it: what is not named in a deployment ends."""

    def __init__(self) -> None:
        self.deployed: dict[str, dict[str, Any]] = {}

    @classmethod
    @contextlib.contextmanager
    def started(cls) -> Iterator["Nodes"]:
        import ray
        from ray import serve
        from ray.cluster_utils import Cluster

        own: dict[str, Any] = {"num_cpus": CPUS_OF_A_NODE, "object_store_memory": STORE_BYTES}
        cluster = Cluster(initialize_head=True, head_node_args={**own, "include_dashboard": False})
        try:
            cluster.add_node(**own)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            serve.start(proxy_location="HeadOnly", http_options={"port": free_port()})
            yield cls()
            serve.shutdown()
        finally:
            ray.shutdown()
            cluster.shutdown()

    def apply(self) -> None:
        """Deploys all, as `serve deploy` does; what is as it was goes on."""
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        config = ServeDeploySchema.model_validate({"applications": list(self.deployed.values())})
        _get_global_client().deploy_apps(config)


class Application:
    """One of them, and the address of its ingress."""

    def __init__(self, nodes: Nodes, name: str, settings: Settings) -> None:
        self.nodes = nodes
        self.name = name
        self.settings = settings
        self.url = f"http://{settings.host}:{settings.port}"

    def deploy(self, num_replicas: int) -> None:
        """Returns once so many replicas are there; those that were there go on."""
        self.configure({"num_replicas": num_replicas})
        wait_long(lambda: len(self.replicas()) == num_replicas)

    def configure(self, replicas: dict[str, Any]) -> None:
        """Deploys it with these options of its replicas."""
        self.nodes.deployed[self.name] = {
            "name": self.name,
            "route_prefix": f"/{self.name}",
            "import_path": "server.cluster:app",
            "args": self.settings.model_dump(mode="json", exclude_unset=True),
            "deployments": [{"name": "Replica", **replicas}],
        }
        self.nodes.apply()

    def remove(self) -> None:
        """Returns once all of it has ended."""
        from ray import serve

        del self.nodes.deployed[self.name]
        self.nodes.apply()
        wait_long(lambda: self.name not in serve.status().applications)

    def replicas(self) -> set[str]:
        """Their names, as the metrics have them."""
        try:
            return set(self.values("knnssd_worker_up"))
        except httpx.TransportError:
            return set()

    def values(self, name: str, label: str = "") -> dict[str, float]:
        """A metric by replica, over all series that have this label."""
        keys = self.settings.app_config.api_keys
        headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
        text = httpx.get(f"{self.url}/metrics", headers=headers, timeout=30).text
        found: defaultdict[str, float] = defaultdict(float)
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and label in series:
                found[series.partition('replica="')[2].partition('"')[0]] += float(value)
        return dict(found)

    def total(self, name: str, label: str = "") -> float:
        return sum(self.values(name, label).values())

    def processes(self) -> list[int]:
        """Process ids of its replicas, each of which Ray names in its command line."""
        name = f"ray::ServeReplica:{self.name}:Replica"
        folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdecimal()]
        return [int(folder.name) for folder in folders if command(folder).startswith(name)]


def body(prompt: str, num_tokens: int, **fields: Any) -> dict[str, Any]:
    """Of a text completion that has so many tokens, whatever they are."""
    return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": num_tokens, "ignore_eos": True, **fields}


def wait_long(condition: Callable[[], bool]) -> None:
    """Polls for three minutes: processes start, and load torch, on a machine that may be busy."""
    for _ in range(900):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError("it did not happen")


def command(folder: Path) -> str:
    """Empty where the process has ended meanwhile."""
    with contextlib.suppress(OSError):
        return (folder / "cmdline").read_bytes().decode(errors="replace")
    return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
