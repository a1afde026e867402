"""Fixtures: prompts of two domains, and timings short enough for a test."""

import json
import random
from pathlib import Path

import pytest

from offline.fidelity import timing
from offline.records import log
from tests.gguf_files import wide_config
from tests.tiny import save_random_model


@pytest.fixture(autouse=True)
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "SETTLING_SECONDS", 0)


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("INFO", log.name)
    return caplog


@pytest.fixture(scope="session")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve prompts of 40 to 51 letters, half of them of each domain, the domains one after the other."""
    chance = random.Random(0)
    lines = [
        json.dumps({"prompt": "".join(chance.choices("abcdefgh ", k=39 + i)) + "!", "domain": domain})
        for domain, first in (("a", 0), ("b", 6))
        for i in range(first, first + 6)
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in fp32 that the kernels can run."""
    return save_random_model(tmp_path_factory.mktemp("wide"), wide_config(num_hidden_layers=2))
