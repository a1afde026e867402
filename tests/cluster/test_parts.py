"""The parts of a cluster that need neither Ray nor a model."""

import json
import sys
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.__main__ import main
from server.api.errors import ServiceUnavailableError
from server.cluster import ingress_metrics
from server.cluster.affinity import Reason
from server.cluster.autoscaling import by_sequences
from server.cluster.ingress_metrics import IngressMetrics
from server.cluster.lost import last_event, numbered
from server.telemetry.metrics import Metrics

LOST = ServiceUnavailableError("lost")


def test_metrics_of_all_replicas_have_their_names() -> None:
    one, two = Metrics(), Metrics()
    one.prompt_tokens.inc(3)
    two.prompt_tokens.inc(4)
    text = IngressMetrics().render({"a": one.render(), "b": two.render()}).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    values = {sample.labels["replica"]: sample.value for sample in families["knnssd_prompt_tokens"].samples}
    assert values == {"a": 3, "b": 4}
    assert {sample.labels["deployment"] for sample in families["knnssd_prompt_tokens"].samples} == {"Replica"}
    assert "knnssd_ingress_lost" in families
    assert len(text.splitlines()) == len(set(text.splitlines()))


def test_the_ingress_counts_by_replica_and_forgets_those_of_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingress_metrics, "MOST_REPLICAS", 2)
    counts = IngressMetrics()
    for replica in ("old", "one", "two"):
        counts.observe_routed(replica, Reason.PREFIX)
    counts.observe_lost("one")
    families = {family.name: family for family in text_string_to_metric_families(counts.render({}).decode())}
    lost = {sample.labels["replica"]: sample.value for sample in families["knnssd_ingress_lost"].samples}
    assert lost == {"one": 1, "two": 0}
    routed = {(s.labels["replica"], s.labels["reason"]): s.value for s in families["knnssd_ingress_routed"].samples}
    assert routed == {(r, str(why)): why is Reason.PREFIX for r in ("one", "two") for why in Reason}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", ["data"]),
        ("/v1/messages", ["event", "data"]),
        ("/v1/responses", ["event", "data"]),
    ],
)
def test_the_last_event_has_the_form_of_its_endpoint(path: str, expected: list[str]) -> None:
    lines = last_event(path, LOST, 7).strip().split("\n")
    assert [line.partition(":")[0] for line in lines] == expected
    data = json.loads(lines[-1].removeprefix("data: "))
    assert data["error"]["message"] == "lost"
    assert data.get("sequence_number") == (7 if path == "/v1/responses" else None)


def test_events_of_responses_are_numbered() -> None:
    assert numbered(b'event: a\ndata: {"type":"response.output_text.delta","sequence_number":12,"x":1}\n\n') == 12
    assert numbered(b"data: {}\n\n") is None


def test_replicas_are_asked_for_by_sequences() -> None:
    config = SimpleNamespace(get_target_ongoing_requests=lambda: 8)
    bounds = {"capacity_adjusted_min_replicas": 1, "capacity_adjusted_max_replicas": 4}

    def wanted(*sequences: float) -> int:
        stats = {"sequences": dict(enumerate(sequences))} if sequences else {}
        return by_sequences(SimpleNamespace(aggregated_metrics=stats, config=config, **bounds))[0]

    assert [wanted(9, 8), wanted(), wanted(900)] == [3, 1, 4]


def test_without_ray_replicas_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "server.cluster.local", None)
    monkeypatch.setattr(sys, "argv", ["knn-ssd-server", "--replicas", "2"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "pip install 'knn-ssd-server[ray]'" in capsys.readouterr().err
