"""Live servers for the tests that only read from them."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch

from server.engine import Checkpoint, RoutingArtifact, load_checkpoint
from tests.api.live import make_worker, serve
from tests.tiny import CPU, save_random_model, tiny_config


@pytest.fixture(scope="session")
def base_url(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for descriptions of tools, each letter of which takes it a token."""
    return save_random_model(tmp_path_factory.mktemp("roomy"), tiny_config(max_position_embeddings=2048))


@pytest.fixture(scope="session")
def roomy_url(roomy_folder: Path, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    worker, _ = make_worker(load_checkpoint(str(roomy_folder), torch.float32, CPU), tiny_artifact)
    with serve(worker) as url:
        yield url


@pytest.fixture(scope="session")
def roomy_client(roomy_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{roomy_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
