"""A Prometheus of our own on a free port: it reads the given servers every second, and alerts without waiting."""

import contextlib
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.api.live import wait_until

FILES = Path(__file__).parents[2] / "docker" / "prometheus"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def expressions(board: str = "*") -> Iterator[str]:
    """Queries of panels, each variable of a dashboard at `all`."""
    for path in sorted((FILES.parent / "grafana" / "dashboards").glob(f"{board}.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                chosen = re.sub(r"\$(instance|domain|deployment|replica)\b", ".*", target["expr"])
                yield chosen.replace("$__rate_interval", "1m")


def rules() -> list[dict[str, Any]]:
    """Recording rules and alerts."""
    groups = yaml.safe_load((FILES / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def write_config(folder: Path, targets: list[str], key: str, name: str) -> Path:
    """The shipped files with other targets, a faster clock, and alerts that fire as soon as they are true."""
    (folder / "key").write_text(f"{key}\n")
    config = yaml.safe_load((FILES / name).read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(folder / "key")
    rules = yaml.safe_load((FILES / "rules.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            rule.pop("for", None)
    (folder / "rules.yml").write_text(yaml.safe_dump(rules))
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def write_history(folder: Path, name: str, labels: list[dict[str, str]], value: float) -> None:
    """A series that had `value` every minute from three hours ago until a quarter of an hour ago."""
    now = int(time.time())
    lines = [f"# TYPE {name} gauge"]
    for label_set in labels:
        written = ",".join(f"{label}={json.dumps(text)}" for label, text in label_set.items())
        lines += [f"{name}{{{written}}} {value} {at}" for at in range(now - 3 * 3600, now - 900, 60)]
    history = folder / "history.txt"
    history.write_text("\n".join([*lines, "# EOF"]) + "\n")
    command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", str(history), str(folder / "data")]
    subprocess.run(command, check=True, capture_output=True)


class Prometheus:
    """A running Prometheus, asked over HTTP."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query, none where it has no data."""
        answer = self.client.post("/api/v1/query", data={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def lacks(self, expressions: Iterable[str]) -> set[str]:
        """Those expressions that have no data even after half a minute."""
        missing = set(expressions)
        for _ in range(60):
            missing = {expression for expression in missing if not self.query(expression)}
            if not missing:
                break
            time.sleep(0.5)
        return missing

    def firing(self) -> set[tuple[str, str]]:
        """Names and instances of the alerts that fire."""
        alerts = self.client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {(a["labels"]["alertname"], a["labels"]["instance"]) for a in alerts if a["state"] == "firing"}


@contextlib.contextmanager
def run_prometheus(
    folder: Path, targets: list[str], key: str = "none", name: str = "prometheus.yml"
) -> Iterator[Prometheus]:
    """Runs with the shipped configuration of this name until the end of the block; its data lies in `folder`."""
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={write_config(folder, targets, key, name)}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=10) as client:
                wait_until(lambda: process.poll() is not None or is_ready(client))
                assert process.poll() is None, (folder / "log").read_text()
                yield Prometheus(client)
        finally:
            process.terminate()


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False
