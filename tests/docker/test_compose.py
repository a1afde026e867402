"""The Compose files: valid, pinned, hardened, private, and every part finds the others."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from server.settings import Settings
from tests.docker.files import DOCKER, DOCKERFILE, GRAFANA, PROMETHEUS, ROOT, read_compose, read_yaml

FILES = ["docker-compose.yml", "docker/cuda.yml"]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = read_compose()["services"]
    return services


def targets(service: dict[str, Any]) -> dict[str, str]:
    """Source by target of what is mounted."""
    mounts = [volume.split(":")[:2] for volume in service.get("volumes", []) if isinstance(volume, str)]
    return {target: source for source, target in mounts}


@pytest.mark.parametrize("name", FILES)
def test_the_compose_specification_allows_the_file(name: str) -> None:
    content = read_compose(name)
    assert PyCompose.from_yaml(yaml.safe_dump(content)).service_names() == sorted(content["services"])
    content["services"]["server"]["readonly"] = True
    with pytest.raises(ValueError, match="readonly"):
        PyCompose.from_yaml(yaml.safe_dump(content))


def test_default_services_and_profiles(services: dict[str, Any]) -> None:
    profiles = {name: service.get("profiles") for name, service in services.items()}
    everyday = dict.fromkeys(("server", "prometheus", "grafana"))
    assert profiles == {**everyday, "loadgen": ["demo"], "calibrate": ["calibrate"]}


def test_services_are_pinned_hardened_and_private(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name}: {service['image']} names no exact version"
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_no_service_may_take_the_whole_machine(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["pids_limit"] == 512 and re.fullmatch(r"\d+g", service["mem_limit"]), name
    assert read_compose(SERVER_MEMORY="64g")["services"]["server"]["mem_limit"] == "64g"


def test_a_server_that_ends_is_started_again(services: dict[str, Any]) -> None:
    assert services["server"]["restart"] == "unless-stopped"


def test_services_say_when_they_are_healthy(services: dict[str, Any]) -> None:
    assert "HEALTHCHECK" in DOCKERFILE.read_text()
    assert "healthcheck" in services["prometheus"] and "healthcheck" in services["grafana"]


def test_builds_are_of_stages_that_exist(services: dict[str, Any]) -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    built = {service["build"]["target"] for service in services.values() if "build" in service}
    assert built == {"server", "loadgen", "offline"} <= set(stages)
    assert stages[-1] == "server", "a build without a target makes the server"


def test_mounted_paths_exist(services: dict[str, Any]) -> None:
    named = read_compose()["volumes"]
    sources = {source for service in services.values() for source in targets(service).values()}
    assert sources and all(source in named or (ROOT / source).exists() for source in sources), sources


def test_the_cuda_file_overrides_services_that_exist(services: dict[str, Any]) -> None:
    assert set(read_yaml(DOCKER / "cuda.yml")["services"]) <= set(services)


def test_one_key_reaches_all_who_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = read_compose(KNNSSD_API_KEY_FILE="./key")
    assert compose["secrets"] == {"api-key": {"file": "./key"}}
    services = compose["services"]
    assert [name for name, service in services.items() if "secrets" in service] == ["server", "prometheus", "loadgen"]
    path = "/run/secrets/api-key"
    assert services["server"]["environment"]["KNNSSD_API_KEY_FILE"] == path
    job = read_yaml(PROMETHEUS / "prometheus.yml")["scrape_configs"][0]
    assert job["authorization"] == {"credentials_file": path}
    assert services["loadgen"]["command"][-2:] == ["--api-key-file", path]


def test_without_a_key_the_server_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    compose = read_compose()
    assert (ROOT / compose["secrets"]["api-key"]["file"]).read_text().strip() == "none"
    for name, value in compose["services"]["server"]["environment"].items():
        monkeypatch.setenv(name, value)
    assert Settings(_cli_parse_args=[]).app_config.api_keys == ()


def test_grafana_and_prometheus_agree() -> None:
    source = read_yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yml")["datasources"][0]
    config = read_yaml(PROMETHEUS / "prometheus.yml")
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["server:8000"]


def test_grafana_finds_the_dashboards(services: dict[str, Any]) -> None:
    provider = read_yaml(GRAFANA / "provisioning" / "dashboards" / "knnssd.yml")["providers"][0]
    path = provider["options"]["path"]
    assert targets(services["grafana"])[path] == "./docker/grafana/dashboards"
    home = Path(services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (GRAFANA / "dashboards" / home.name).exists() and str(home.parent) == path
