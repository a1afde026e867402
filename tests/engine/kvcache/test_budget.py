"""The context that is chosen where nobody says it."""

import pytest
import torch

from server.engine import Decoder, DecoderConfig, Engine, EngineConfig
from server.engine.kvcache import budget
from server.engine.kvcache.budget import fitting_length, position_bytes
from tests.tiny import CPU

GB = 2**30
SMOL = DecoderConfig(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5)
LLAMA = DecoderConfig(32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5)


@pytest.mark.parametrize(
    ("config", "gigabytes", "expected"),
    [(SMOL, 24, 8192), (SMOL, 7, 8192), (SMOL, 4, 5120), (LLAMA, 24, 5120), (LLAMA, 2, 1024)],
)
def test_all_slots_fit_a_quarter_of_the_memory(
    config: DecoderConfig, gigabytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: gigabytes * GB)
    found = fitting_length(config, 8, torch.bfloat16, CPU)
    assert found == expected
    assert found == 1024 or 8 * found * position_bytes(config, torch.bfloat16) <= gigabytes * GB / 4


def test_a_length_that_is_named_wins(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "available_memory", lambda device: 1)
    assert Engine(model, EngineConfig(max_length=100)).max_length == 100
    assert Engine(model, EngineConfig(max_length=10**6)).max_length == model.config.max_length
