"""The official npm client against live servers; `npm ci --prefix tests/clients/npm` installs it."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from server.app import AppConfig
from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import lose_model, make_worker, serve, serve_full

FOLDER = Path(__file__).parent / "npm"
INSTALL = f"npm ci --prefix {FOLDER.relative_to(FOLDER.parents[2])}"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules" / "openai").exists(), reason=f"install the client: {INSTALL}"),
]


def test_the_npm_client(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    plain, _ = make_worker(checkpoint, tiny_artifact)
    guarded, _ = make_worker(checkpoint, tiny_artifact)
    mortal, engine = make_worker(checkpoint, None)
    engine.fatal_step = 20
    config = AppConfig(api_keys=("first",))
    with serve(plain) as url, serve(guarded, config) as locked, serve_full(checkpoint) as full, serve(mortal) as dying:
        lose_model(mortal)
        urls = {"PLAIN_URL": url, "GUARDED_URL": locked, "BUSY_URL": full, "MORTAL_URL": dying}
        run = subprocess.run(
            ["node", "--test", "--test-reporter=tap"],
            cwd=FOLDER,
            env=os.environ | {name: f"{address}/v1" for name, address in urls.items()},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert run.returncode == 0, run.stdout + run.stderr
    declared = len(re.findall(r"^test\(", (FOLDER / "client.test.mjs").read_text(), re.MULTILINE))
    assert re.search(rf"^# pass {declared}$", run.stdout, re.MULTILINE), run.stdout
