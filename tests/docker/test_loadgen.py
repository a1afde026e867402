"""The load generator: prompts of all domains, a key where the server asks for one, a line for each failure."""

import importlib.util
import socket
from pathlib import Path
from types import ModuleType

import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve
from tests.docker.files import DOCKER


@pytest.fixture
def loadgen() -> ModuleType:
    spec = importlib.util.spec_from_file_location("loadgen", DOCKER / "loadgen" / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_prompts_are_of_all_domains(loadgen: ModuleType) -> None:
    domains = {prompt.domain for prompt in loadgen.read_prompts(loadgen.PROMPTS)}
    assert domains == {"summarization", "reasoning", "translation", "storytelling", "text-to-sql", "other"}


def test_it_says_that_no_server_answers(loadgen: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    loadgen.main(["--url", url, "--users", "2", "--requests", "1", "--pause", "0"])
    assert capsys.readouterr().out.splitlines() == [f"no answer from {url}: Connection error."] * 2


def test_it_sends_the_key(
    loadgen: ModuleType,
    checkpoint: Checkpoint,
    tiny_artifact: RoutingArtifact,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    (tmp_path / "prompts").write_text('{"domain": "other", "prompt": "hi"}')
    (tmp_path / "key").write_text("secret\n")
    common = f"--users 1 --requests 1 --pause 0 --max-tokens 3 --prompts {tmp_path / 'prompts'}".split()
    with serve(worker, AppConfig(api_keys=("secret",))) as url:
        loadgen.main(["--url", f"{url}/v1", *common, "--api-key-file", str(tmp_path / "key")])
        assert "3 tokens" in capsys.readouterr().out
        loadgen.main(["--url", f"{url}/v1", *common])
        assert "Incorrect API key" in capsys.readouterr().out
