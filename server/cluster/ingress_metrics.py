"""All metrics at one address: the ingress's own, and those of every replica with labels that name it."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.cluster.affinity import Reason

MOST_REPLICAS = 1024
"""Those that were met last have series of their own: replicas come and go, and each has a new name."""


class IngressMetrics:
    """What happens between clients and the replicas of a deployment."""

    def __init__(self, deployment: str = "Replica") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.deployment = deployment
        self.registry = CollectorRegistry()
        where = ("deployment", "replica")
        self.routed = self.counter("routed", "Requests by why their replica was chosen", *where, "reason")
        self.retries = self.counter("retries", "Requests that another replica was asked for")
        self.lost = self.counter("lost", "Requests whose replica died", *where)
        self.limited = self.counter("limited", "Requests refused since their client had too many")
        self.errors = self.counter("errors", "Requests that ended in an error nobody foresaw")
        self.met: dict[str, None] = {}

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"knnssd_ingress_{name}", text, labels, registry=self.registry)

    def meet(self, replica: str) -> None:
        """Starts a replica's series at 0, so that a rate sees their first event."""
        if replica in self.met:
            return
        self.met[replica] = None
        self.lost.labels(self.deployment, replica)
        for reason in Reason:
            self.routed.labels(self.deployment, replica, reason)
        if len(self.met) > MOST_REPLICAS:
            self.forget(next(iter(self.met)))

    def forget(self, replica: str) -> None:
        del self.met[replica]
        self.lost.remove(self.deployment, replica)
        for reason in Reason:
            self.routed.remove(self.deployment, replica, reason)

    def observe_routed(self, replica: str, reason: Reason) -> None:
        self.meet(replica)
        self.routed.labels(self.deployment, replica, reason).inc()

    def observe_lost(self, replica: str) -> None:
        self.meet(replica)
        self.lost.labels(self.deployment, replica).inc()

    def render(self, replicas: Mapping[str, bytes]) -> bytes:
        """Prometheus's text; `replicas` has that of each by its name."""
        for replica in replicas:
            self.meet(replica)
        registry = CollectorRegistry()
        registry.register(Federation(self.deployment, replicas))
        return generate_latest(self.registry) + generate_latest(registry)


class Federation(Collector):
    """The series of several servers as those of one, each with the labels `deployment` and `replica`."""

    def __init__(self, deployment: str, texts: Mapping[str, bytes]) -> None:
        self.deployment = deployment
        self.texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, metric in self.parsed():
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            labels = {"deployment": self.deployment, "replica": replica}
            family.samples += [sample._replace(labels={**sample.labels, **labels}) for sample in metric.samples]
        return families.values()

    def parsed(self) -> Iterator[tuple[str, Metric]]:
        for replica, text in self.texts.items():
            for metric in text_string_to_metric_families(text.decode()):
                yield replica, metric
