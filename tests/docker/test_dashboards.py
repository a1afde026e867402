"""Dashboards and rules: what Grafana and Prometheus accept, over metrics that the server has."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import Metric

from server.cluster.ingress_metrics import IngressMetrics
from server.telemetry.metrics import Metrics
from tests.docker.files import GRAFANA, PROMETHEUS, read_yaml

DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
METRIC = re.compile(r"\bknnssd_[a-z0-9_]+")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool, part of Prometheus, is not installed"
)


def rules() -> Iterator[dict[str, Any]]:
    for group in read_yaml(PROMETHEUS / "rules.yml")["groups"]:
        yield from group["rules"]


def panels() -> Iterator[dict[str, Any]]:
    for path in DASHBOARDS:
        yield from json.loads(path.read_text())["panels"]


def expressions() -> Iterator[str]:
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


def exposed_names(family: Metric) -> set[str]:
    """The sample names of a metric, as Prometheus stores them."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "info": ("_info",)}
    return {family.name + ending for ending in endings.get(family.type, ("",))}


def test_dashboards_are_what_the_code_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GRAFANA / "dashboards.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}, "run docker/grafana/dashboards.py"


def test_grafanas_schema_knows_every_field_of_the_dashboards() -> None:
    contents = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({content["uid"] for content in contents}) == 4
    for content in contents:
        assert json.loads(JSONEncoder().encode(Dashboard.from_json(content))) == content, content["title"]


def test_panels_do_not_overlap() -> None:
    for path in DASHBOARDS:
        cells = [
            (x, y)
            for place in (panel["gridPos"] for panel in json.loads(path.read_text())["panels"])
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24, path.name


def test_each_panel_says_what_to_do() -> None:
    for panel in panels():
        shows, _, when_bad = panel["description"].partition("**When it is bad:**")
        assert len(shows) > 20 and len(when_bad) > 20, panel["title"]


def test_each_alert_says_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 5
    for alert in alerts:
        assert {"summary", "action"} <= set(alert["annotations"]), alert["alert"]


def test_queries_use_metrics_that_the_server_has() -> None:
    families = [*Metrics().registry.collect(), *IngressMetrics().registry.collect()]
    known = {sample for family in families for sample in exposed_names(family)}
    queried = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert queried and queried <= known, queried - known


def test_queries_name_the_job_of_prometheus() -> None:
    job = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"][0]["job_name"]
    queries = [expression for expression in expressions() if re.search(r"\bup\{", expression)]
    assert queries and all(f'job="{job}"' in query for query in queries)


@needs_promtool
@pytest.mark.parametrize(
    "command",
    # The key's file is there in the container only.
    [
        "check config --syntax-only prometheus.yml",
        "check config --syntax-only cluster.yml",
        "check rules rules.yml",
        "test rules rules.test.yml",
    ],
)
def test_prometheus_accepts_its_files(command: str) -> None:
    result = subprocess.run(["promtool", *command.split()], cwd=PROMETHEUS, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_promtool
def test_prometheus_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [expression.replace("$__rate_interval", "1m") for expression in expressions()]
    group = {"name": "panels", "rules": [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(queries)]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    result = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
