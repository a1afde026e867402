"""What docker/ describes fits together: images, Compose, Prometheus rules, Grafana dashboards."""

import importlib.util
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard
from prometheus_client import Metric

from server.metrics import Metrics

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
GRAFANA = DOCKER / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
METRIC = re.compile(r"\bknnssd_[a-z0-9_]+")


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = read_yaml(ROOT / "docker-compose.yml")["services"]
    return services


def dockerfile_stages() -> list[str]:
    return re.findall(r"^FROM \S+ AS (\S+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)


def rules() -> Iterator[dict[str, Any]]:
    for group in read_yaml(DOCKER / "prometheus" / "rules.yml")["groups"]:
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


def test_default_services_and_profiles(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "profiles" not in service} == {
        "server",
        "prometheus",
        "grafana",
    }
    assert services["loadgen"]["profiles"] == ["demo"]
    assert services["calibrate"]["profiles"] == ["calibrate"]


def test_services_are_pinned_hardened_and_private(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']} names no exact version"
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_services_say_when_they_are_healthy(services: dict[str, Any]) -> None:
    assert "/ready" in (DOCKER / "Dockerfile").read_text()
    assert "healthcheck" in services["prometheus"] and "healthcheck" in services["grafana"]


def test_compose_builds_stages_that_exist(services: dict[str, Any]) -> None:
    targets = {service["build"]["target"] for service in services.values() if "build" in service}
    assert targets == {"server", "loadgen", "offline"}
    assert targets <= set(dockerfile_stages())
    assert dockerfile_stages()[-1] == "server", "a build without a target makes the server"


def test_mounted_paths_exist(services: dict[str, Any]) -> None:
    named = read_yaml(ROOT / "docker-compose.yml")["volumes"]
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0] if isinstance(volume, str) else "."
            assert source in named or source.startswith("${") or (ROOT / source).exists(), volume


def test_the_cuda_file_overrides_services_that_exist(services: dict[str, Any]) -> None:
    assert set(read_yaml(DOCKER / "cuda.yml")["services"]) <= set(services)


def test_images_run_as_a_user_and_receive_signals() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^USER \d+$", text, re.MULTILINE)
    assert re.search(r"^ARG PYTHON=3\.11\.\d+-", text, re.MULTILINE)
    entrypoints = re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)
    assert len(entrypoints) == 3
    assert all(isinstance(json.loads(entrypoint), list) for entrypoint in entrypoints)
    assert all(json.loads(command) for command in re.findall(r"CMD (\[.*\])$", text, re.MULTILINE))


def test_kernels_are_compiled_where_no_image_keeps_the_compiler() -> None:
    text = (DOCKER / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)$(.*?)(?=^FROM|\Z)", text, re.MULTILINE | re.DOTALL))
    assert {name for name, steps in stages.items() if "g++" in steps} == {"build"}
    assert "native/*.so" in stages["build"], "a build without kernels must fail"
    assert re.search(r"^FROM runtime AS server$", text, re.MULTILINE)


def test_copied_files_are_in_the_build_context() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    for source in " ".join(copied).split():
        assert source in allowed and (ROOT / source).exists(), source


def test_dashboards_are_what_the_code_makes(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(GRAFANA / "dashboards.py"), str(tmp_path)], check=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert made == {path.name: path.read_text() for path in DASHBOARDS}, "run docker/grafana/dashboards.py"


def test_grafanas_schema_knows_every_field_of_the_dashboards() -> None:
    for path in DASHBOARDS:
        shipped = json.loads(path.read_text())
        read = json.loads(JSONEncoder().encode(Dashboard.from_json(shipped)))
        assert read == shipped, path.name


def test_dashboards_fit_grafana_and_its_provisioning(services: dict[str, Any]) -> None:
    contents = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({content["uid"] for content in contents}) == len(contents) == 3
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    provider = read_yaml(GRAFANA / "provisioning" / "dashboards" / "knnssd.yml")["providers"][0]
    assert mounts["./docker/grafana/dashboards"] == provider["options"]["path"]
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (GRAFANA / "dashboards" / home.name).exists() and str(home.parent) == provider["options"]["path"]


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
    families = Metrics().registry.collect()
    known = {sample for family in families for sample in exposed_names(family)}
    queried = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert queried and queried <= known, queried - known


def test_grafana_and_prometheus_agree(services: dict[str, Any]) -> None:
    source = read_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    config = read_yaml(DOCKER / "prometheus" / "prometheus.yml")
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    job = config["scrape_configs"][0]
    assert job["static_configs"][0]["targets"] == ["server:8000"]
    queries = [expression for expression in expressions() if re.search(r"\bup\{", expression)]
    assert queries and all(f'job="{job["job_name"]}"' in query for query in queries)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, part of Prometheus, is not installed")
@pytest.mark.parametrize("command", [("check", "config", "prometheus.yml"), ("test", "rules", "rules.test.yml")])
def test_prometheus_accepts_its_files(command: tuple[str, ...]) -> None:
    result = subprocess.run(["promtool", *command], cwd=DOCKER / "prometheus", capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool, part of Prometheus, is not installed")
def test_prometheus_accepts_the_dashboards_queries(tmp_path: Path) -> None:
    queries = [expression.replace("$__rate_interval", "1m") for expression in expressions()]
    group = {"name": "panels", "rules": [{"record": f"panel:{i}", "expr": query} for i, query in enumerate(queries)]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [group]}))
    result = subprocess.run(["promtool", "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture
def loadgen() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loadgen", DOCKER / "loadgen" / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_load_generator_has_prompts_of_all_domains(loadgen: ModuleType) -> None:
    domains = {prompt.domain for prompt in loadgen.read_prompts(loadgen.PROMPTS)}
    assert domains == {"summarization", "reasoning", "translation", "storytelling", "text-to-sql", "other"}


def test_load_generator_says_that_no_server_answers(loadgen: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    loadgen.main(["--url", url, "--users", "2", "--requests", "1", "--pause", "0"])
    assert capsys.readouterr().out.splitlines() == [f"no answer from {url}: Connection error."] * 2
