"""All metrics at one address: the ingress's own, and those of every replica with labels that name it."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from server.cluster.affinity import Reason


class IngressMetrics:
    """What happens between clients and replicas."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.routed = self.counter("routed", "Requests by why their replica was chosen", "reason")
        self.retries = self.counter("retries", "Requests that another replica was asked for")
        self.lost = self.counter("lost", "Requests whose replica died")
        self.errors = self.counter("errors", "Requests that ended in an error nobody foresaw")
        for reason in Reason:
            self.routed.labels(reason)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"knnssd_ingress_{name}", text, labels, registry=self.registry)

    def render(self, deployment: str, replicas: Mapping[str, bytes]) -> bytes:
        """Prometheus's text; `replicas` has that of each by its name."""
        registry = CollectorRegistry()
        registry.register(Federation(deployment, replicas))
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
