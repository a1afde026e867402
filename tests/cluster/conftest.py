"""A Ray cluster of two nodes on this machine, with replicas of a tiny model; only where Ray is installed."""

import os
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch

from server.engine import RoutingArtifact, load_checkpoint
from server.settings import Settings
from tests.cluster.nodes import NUM_REPLICAS, Application, Nodes, free_port
from tests.tiny import CPU, save_random_model, tiny_config

SETTINGS_OF_RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_artifact: RoutingArtifact) -> Settings:
    """Of a tiny model with room for long answers."""
    folder = save_random_model(tmp_path_factory.mktemp("replicated"), tiny_config(max_position_embeddings=8192))
    fingerprint = load_checkpoint(str(folder), torch.float32, CPU).fingerprint
    manifest = tiny_artifact.manifest.model_copy(update={"model_fingerprint": fingerprint})
    artifact = tmp_path_factory.mktemp("its-artifact")
    RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {}).save(artifact)
    return Settings(
        model=str(folder),
        artifact=artifact,
        served_model_name="tiny",
        dtype="float32",
        port=free_port(),
        history_memory=1,
        drain_seconds=20,
        log_level="warning",
    )


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS_OF_RAY.items():
            patch.setitem(os.environ, name, value)
        with Nodes.started() as nodes:
            yield nodes


@pytest.fixture(scope="session")
def application(nodes: Nodes, settings: Settings) -> Application:
    application = Application(nodes, "default", settings)
    application.deploy(NUM_REPLICAS)
    return application


@pytest.fixture(scope="session")
def base_url(application: Application) -> str:
    return application.url


@pytest.fixture(scope="session")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client
