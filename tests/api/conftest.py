"""One live server for the tests that only read from it."""

from collections.abc import Iterator

import openai
import pytest

from server.engine import Checkpoint, RoutingArtifact
from tests.api.live import make_worker, serve


@pytest.fixture(scope="session")
def base_url(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Iterator[str]:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    with serve(worker) as url:
        yield url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client
