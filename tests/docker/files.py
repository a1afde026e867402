"""Where the files of the deployment are, and how they are read."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
GRAFANA = DOCKER / "grafana"
PROMETHEUS = DOCKER / "prometheus"
DOCKERFILE = DOCKER / "Dockerfile"


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def read_compose(name: str = "docker-compose.yml", **variables: str) -> Any:
    """A Compose file with its `${NAME:-default}` and `${NAME:+value}` filled in."""

    def fill(found: re.Match[str]) -> str:
        name, kind, value = found.groups()
        return variables.get(name) or value if kind == "-" else value if variables.get(name) else ""

    return yaml.safe_load(re.sub(r"\$\{(\w+):([-+])([^}]*)\}", fill, (ROOT / name).read_text()))
