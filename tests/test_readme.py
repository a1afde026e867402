"""The README's examples, run as they stand against a server of the default model."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.engine import EngineConfig
from server.served_model import load
from server.settings import read_settings
from server.telemetry.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import serve
from tests.test_docs import README, blocks

ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    source = read_settings([]).source
    worker = Worker(lambda: load(source, EngineConfig()), QueueLimits(64, 100_000), Metrics())
    with serve(worker) as url:
        yield url


def test_the_first_request_is_answered_sensibly(url: str) -> None:
    (curl,) = [block for block in blocks(README, "bash") if block.startswith("curl")]
    words = shlex.split(curl.replace("\\\n", " "))
    assert words[:2] == ["curl", f"{ADDRESS}/v1/chat/completions"]
    body = json.loads(words[words.index("-d") + 1])
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]


def test_the_python_examples_run_one_after_the_other(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for snippet in blocks(README, "python"):
        exec(compile(snippet.replace(ADDRESS, url), str(README), "exec"), names)
    *told, boat = capsys.readouterr().out.strip().splitlines()
    assert "Paris" in told[0]
    assert len(names["messages"]) == 4
    assert re.match(r"kind='(rowing boat|sailing boat|ferry)' length=\d+", boat)


def test_results_are_json_lines_of_commands_that_are_told() -> None:
    folder = Path(README).parent / "offline" / "results"
    told = (folder / "README.md").read_text()
    lines = sorted(path.name for path in folder.glob("*.json"))
    assert lines
    for name in lines:
        assert f"`{name}`" in told, name
        assert json.loads((folder / name).read_text())["format"].startswith("knnssd-")
