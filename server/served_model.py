"""A loaded model under the name that requests use, with its codec, engine and routing artifact.

`load` runs in the worker's thread. The rest of the server reads a `ServedModel`, it never loads.
"""

import logging
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from server.engine import (
    Activations,
    Checkpoint,
    Decoder,
    DraftWeights,
    Engine,
    EngineConfig,
    GrammarCompiler,
    Quantization,
    Route,
    RoutingArtifact,
    TextCodec,
    add_draft,
    load_model,
    use_threads,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is to be loaded.

    `model` None is the default model; `dtype` None keeps the checkpoint's own; `threads` None takes all that this
    process may use.
    """

    model: str | None
    name: str
    artifact: Path | None
    dtype: torch.dtype | None
    device: torch.device
    trust_remote_code: bool = False
    quantization: Quantization = "auto"
    activations: Activations = "auto"
    draft_weights: DraftWeights = "none"
    threads: int | None = None


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to serve; `engine` belongs to the worker's thread alone."""

    name: str
    checkpoint: Checkpoint
    codec: TextCodec
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_length(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.max_length

    @property
    def vocabulary_size(self) -> int:
        return self.checkpoint.config.vocabulary_size

    @property
    def domains(self) -> list[str]:
        """Names that a request may give as its domain; none without a routing artifact."""
        router = self.engine.router
        return [*router.domains, router.mixed.domain] if router else []

    @cached_property
    def grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.codec.vocabulary, self.vocabulary_size, self.checkpoint.eos_ids)

    def route(self, domain: str) -> Route | None:
        return self.engine.router.named(domain) if self.engine.router else None


def load(source: Source, config: EngineConfig) -> ServedModel:
    """Loads and checks everything; raises `CheckpointError` or `ArtifactError` with one clear sentence."""
    artifact = RoutingArtifact.load(source.artifact) if source.artifact else None
    threads = use_threads(source.threads)
    checkpoint = load_model(source.model, source.dtype, source.device, source.trust_remote_code, source.quantization)
    codec = TextCodec(checkpoint.tokenizer)
    if artifact and source.artifact:
        artifact.check_model(checkpoint.fingerprint, codec.template_hash, source.artifact)
    model = Decoder(checkpoint, source.activations)
    add_draft(model, checkpoint, source.draft_weights)
    # The decoder has its own packed copies; together they would take twice the model's memory.
    checkpoint.forget_weights()
    served = ServedModel(source.name, checkpoint, codec, Engine(model, config, artifact))
    logger.info("threads: %s", threads)
    if artifact is None:
        logger.warning(
            "no routing artifact: %s is served with method %s and no layer is skipped; "
            "`knn-ssd-offline calibrate` makes an artifact for --artifact",
            source.name,
            config.method,
        )
    return served
