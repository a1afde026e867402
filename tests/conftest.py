"""Fixtures: a tiny model, its codec, and a two-domain artifact for it."""

import os
from pathlib import Path

import pytest
import torch

from server.engine import (
    Checkpoint,
    Decoder,
    DomainRecord,
    DraftRecord,
    Manifest,
    RoutingArtifact,
    SkipMask,
    TextCodec,
    load_checkpoint,
)
from tests.tiny import CPU, save_random_model, tiny_config


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are fastest on one thread, and threads that wait for each other suffer on a busy machine."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("tiny"), tiny_config())


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(tiny_checkpoint), torch.float32, CPU)


@pytest.fixture(scope="session")
def model(checkpoint: Checkpoint) -> Decoder:
    return Decoder(checkpoint)


@pytest.fixture(scope="session")
def codec(checkpoint: Checkpoint) -> TextCodec:
    return TextCodec(checkpoint.tokenizer)


@pytest.fixture(scope="session")
def tiny_artifact(checkpoint: Checkpoint, codec: TextCodec) -> RoutingArtifact:
    """Two domains with different masks; anchors point in two directions around their centre."""

    def domain(name: str, attention: list[int], mlp: list[int]) -> DomainRecord:
        mask = SkipMask(frozenset(attention), frozenset(mlp))
        draft = DraftRecord(mask=mask, max_draft=4, confidence=0.0)
        return DomainRecord(name=name, draft=draft, num_prompts=4, acceptance=0.5, predicted_speedup=1.1)

    hidden_size = checkpoint.config.hidden_size
    direction = torch.randn(hidden_size, generator=torch.Generator().manual_seed(0))
    manifest = Manifest(
        model_fingerprint=checkpoint.fingerprint,
        model_name="tiny",
        num_layers=checkpoint.config.num_layers,
        hidden_size=hidden_size,
        dtype="float32",
        chat_template_hash=codec.template_hash,
        domains=[domain("stories", [1, 2], [2]), domain("sql", [3], [1, 3])],
        mixed=domain("mixed", [2], [2]),
        anchor_domains=[0, 1],
        similarity_threshold=-1.0,
        seed=0,
        created="2026-01-01T00:00:00Z",
    )
    return RoutingArtifact(manifest, torch.stack((direction, -direction)), torch.zeros(hidden_size), {})


@pytest.fixture(scope="session")
def tiny_artifact_folder(tiny_artifact: RoutingArtifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact")
    tiny_artifact.save(folder)
    return folder
