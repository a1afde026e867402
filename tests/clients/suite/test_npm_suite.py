"""Vercel's AI SDK and Anthropic's npm client; `npm ci --prefix tests/clients/suite/npm` installs them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.suite.conftest import Served
from tests.clients.suite.questions import BOAT, GREETING, WEATHER

FOLDER = Path(__file__).parent / "npm"

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(not (FOLDER / "node_modules").exists(), reason="npm ci --prefix tests/clients/suite/npm"),
]


def test_npm_clients(served: Served) -> None:
    told = {"SERVER_URL": served.url, "MODEL": served.model, "GREETING": GREETING, "WEATHER": WEATHER, "BOAT": BOAT}
    run = subprocess.run(
        ["node", "--test", "--test-reporter=tap"],
        cwd=FOLDER,
        env=os.environ | told,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"^# pass [1-9]", run.stdout, re.MULTILINE), run.stdout
