"""The command `llm`; it has no way to send fields beyond OpenAI's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, WEATHER, Boat

pytest.importorskip("llm")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
TOOL = "def get_weather(city: str) -> str:\n    return 'It is sunny in ' + city\n"


@pytest.fixture
def run(served: Served, tmp_path: Path) -> Run:
    known = f"  api_base: {served.v1}\n  supports_schema: true\n  supports_tools: true\n"
    models = {"own": served.model, "absent": "absent"}
    entries = [f"- model_id: {name}\n  model_name: {model}\n{known}" for name, model in models.items()]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(entries))
    environment = os.environ | {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    limits = ("-o", "temperature", "0", "-o", "max_tokens", "60")

    def run(*arguments: str, model: str = "own") -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "llm", "-m", model, *limits, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    return run


def test_plain_and_streamed(run: Run) -> None:
    streamed, whole = run(GREETING), run("--no-stream", GREETING)
    assert streamed.stdout.strip() and streamed.stdout == whole.stdout, streamed.stderr


def test_a_tool_is_offered(run: Run) -> None:
    """Whether it is called, the model decides: the command cannot ask for a call."""
    for stream in ([], ["--no-stream"]):
        asked = run("--functions", TOOL, "--chain-limit", "3", *stream, WEATHER)
        assert asked.stdout.strip() or "Chain limit" in asked.stderr, asked.stderr


def test_an_object(run: Run) -> None:
    Boat.model_validate_json(run("--schema", json.dumps(Boat.model_json_schema()), BOAT).stdout)


def test_an_error(run: Run) -> None:
    asked = run(GREETING, model="absent")
    assert asked.returncode == 1 and "does not exist" in asked.stderr
