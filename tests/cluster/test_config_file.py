"""`serve run docker/serve.yml`, as the documentation has it, on a Ray cluster of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml

from server.settings import Settings
from tests.cluster.conftest import SETTINGS_OF_RAY
from tests.cluster.nodes import STORE_BYTES, free_port, wait_long
from tests.docker.files import DOCKER, read_yaml

BIN = Path(sys.executable).parent


@contextlib.contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[None]:
    """A program of Ray's, until the end of the block."""
    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, env=env) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


@pytest.mark.slow
def test_the_config_file_serves(settings: Settings, tmp_path: Path) -> None:
    """The file as it is, but for the port; the model comes from variables, as its comment says."""
    pytest.importorskip("ray", reason="needs the extra ray")
    config = read_yaml(DOCKER / "serve.yml")
    config["http_options"]["port"] = free_port()
    (tmp_path / "serve.yml").write_text(yaml.safe_dump(config))
    (cpus,) = {each["ray_actor_options"]["num_cpus"] for each in replicas_of(config)}
    head = f"127.0.0.1:{free_port()}"
    given = {"RAY_ADDRESS": head, "KNNSSD_MODEL": str(settings.model), "KNNSSD_SERVED_MODEL_NAME": "tiny"}
    env = {**os.environ, **SETTINGS_OF_RAY, **given}
    own = [f"--num-cpus={cpus}", f"--object-store-memory={STORE_BYTES}", "--include-dashboard=false", "--block"]
    ports = [f"--{name}={free_port()}" for name in ("ray-client-server-port", "dashboard-agent-listen-port")]
    start = [f"{BIN}/ray", "start", "--head", f"--port={head.partition(':')[2]}", *own, *ports]
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    with running(start, tmp_path / "ray.log", env):
        wait_long(lambda: "This command will now block" in (tmp_path / "ray.log").read_text())
        with running([f"{BIN}/serve", "run", str(tmp_path / "serve.yml")], tmp_path / "serve.log", env):
            wait_long(lambda: is_ready(url))
            check_chat(url)
            metrics = httpx.get(f"{url}/metrics", timeout=60).text
            log = (tmp_path / "serve.log").read_text()
    assert 'knnssd_worker_up{deployment="Replica",replica="' in metrics
    assert "by_sequences" in log and "Autoscaling will never happen" not in log


def check_chat(url: str) -> None:
    """Whole and streamed, through one of Serve's proxies."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        sent: Any = {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0,
            "max_tokens": 8,
        }
        whole = client.chat.completions.create(**sent)
        pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**sent, stream=True)]
    assert "".join(pieces) == whole.choices[0].message.content != ""


def replicas_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [each for app in config["applications"] for each in app["deployments"] if each["name"] == "Replica"]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
