"""What of its machine a replica may take, where Serve has put others beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import ray

from server.served_model import Source


@dataclass(frozen=True)
class Share:
    """Threads, and bytes of main memory; None where nobody says."""

    threads: int
    memory: int | None

    @classmethod
    def of_this_replica(cls) -> "Share":
        """The CPUs that Ray has set aside for this actor, and the memory that belongs to them."""
        context = ray.get_runtime_context()
        node = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        return cls.of(context.get_assigned_resources(), node["Resources"])

    @classmethod
    def of(cls, assigned: Mapping[str, float], node: Mapping[str, float]) -> "Share":
        """The memory is what was set aside, else as much of the node's as of its CPUs: of 8 CPUs two have a quarter."""
        cpus = assigned.get("CPU", 0)
        share = min(1.0, cpus / node.get("CPU", 1) if cpus else 1.0)
        memory = assigned.get("memory") or node.get("memory", 0) * share
        return cls(max(1, int(cpus)), int(memory) or None)

    def applied(self, source: Source) -> Source:
        return replace(source, threads=self.threads, most_memory=self.memory)
