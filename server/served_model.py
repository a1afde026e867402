"""A loaded model under the name that requests use, with its codec, engine and routing artifact.

`load` runs in the worker's thread. The rest of the server reads a `ServedModel`, it never loads.
"""

import logging
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch

from server.engine import (
    Activations,
    Checkpoint,
    Decoder,
    DraftModel,
    DraftWeights,
    Engine,
    EngineConfig,
    GrammarCompiler,
    MemoryPlan,
    MemoryPlanError,
    Outline,
    Quantization,
    Route,
    RoutingArtifact,
    TextCodec,
    Wishes,
    add_draft,
    available_memory,
    load_counts,
    load_model,
    methods,
    plan_memory,
    save_counts,
    use_threads,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model comes from and how it is to be loaded.

    `model` None is the default model; `dtype` None keeps the checkpoint's own; `threads` None takes all that this
    process may use. What `draft_weights` auto stands for is `used_draft_weights`.
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
    revision: str | None = None
    history_file: Path | None = None
    """Where what is learned of answers is kept over a restart."""
    most_memory: int | None = None
    """Bytes of main memory that it may take where others share the machine; None is all that is free."""


@dataclass(frozen=True)
class ServedModel:
    """A model that is ready to serve; `engine` belongs to the worker's thread alone."""

    name: str
    checkpoint: Checkpoint
    codec: TextCodec
    engine: Engine
    history_file: Path | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_length(self) -> int:
        """Longest prompt and answer together, in tokens."""
        return self.engine.max_length

    @property
    def most_characters(self) -> int:
        """A text that is longer has more tokens than the context holds, whatever they are."""
        return self.max_length * self.codec.longest_token

    @property
    def vocabulary_size(self) -> int:
        return self.checkpoint.config.vocabulary_size

    @property
    def domains(self) -> list[str]:
        """Names that a request may give as its domain; none without a routing artifact."""
        router = self.engine.router
        return [route.domain for route in router.all] if router else []

    @property
    def drafts(self) -> dict[str, DraftModel]:
        """The draft of each of the domains."""
        router = self.engine.router
        return {route.domain: route.draft for route in router.all} if router else {}

    @cached_property
    def grammars(self) -> GrammarCompiler:
        return GrammarCompiler(self.codec.vocabulary, self.vocabulary_size, self.checkpoint.eos_ids)

    def route(self, domain: str) -> Route | None:
        return self.engine.router.named(domain) if self.engine.router else None

    def close(self) -> None:
        """Writes what was learned of answers, where a file is named for it."""
        if self.history_file and self.engine.history:
            save_counts(self.engine.history.past, self.history_file, self.checkpoint.fingerprint)


def load(source: Source, config: EngineConfig, wishes: Wishes | None = None) -> ServedModel:
    """Loads and checks everything; raises an error of the engine's with one clear sentence.

    `wishes` are what was chosen of the cache, without them the numbers of `config`.
    """
    artifact = RoutingArtifact.load(source.artifact) if source.artifact else None
    threads = use_threads(source.threads)
    planning = Planning(source, config, artifact, wishes or Wishes(config.max_batch, config.max_length))
    options = source.model, source.dtype, source.device, source.trust_remote_code, source.quantization
    checkpoint = load_model(*options, source.revision, admit=planning.admit)
    codec = TextCodec(checkpoint.tokenizer)
    if artifact and source.artifact:
        known = checkpoint.fingerprint, codec.template_hash
        artifact.check_model(*known, source.artifact, checkpoint.config.vocabulary_size)
    model = Decoder(checkpoint, source.activations)
    add_draft(model, checkpoint, planning.draft_weights)
    # The decoder has its own packed copies; together they would take twice the model's memory.
    checkpoint.forget_weights()
    engine = Engine(model, planning.config, artifact)
    if source.history_file and source.history_file.exists() and engine.history:
        size = checkpoint.config.vocabulary_size
        load_counts(engine.history.past, source.history_file, checkpoint.fingerprint, size)
    served = ServedModel(source.name, checkpoint, codec, engine, source.history_file)
    logger.info("threads: %s", threads)
    logger.info("memory: %s", planning.plan)
    warn_of_missing(served, artifact)
    return served


class Planning:
    """What is settled between a model's description and its weights: the memory plan, slots, context, and the copy."""

    def __init__(self, source: Source, config: EngineConfig, artifact: RoutingArtifact | None, wishes: Wishes) -> None:
        self.source = source
        self.config = config
        self.artifact = artifact
        self.wishes = wishes
        self.draft_weights: DraftWeights = "none"
        self.plan: MemoryPlan | None = None

    def admit(self, outline: Outline) -> None:
        """Raises `MemoryPlanError`; a copy to draft with that nobody asked for is left out where it does not fit."""
        asked, method = self.source.draft_weights, self.config.method
        wanted = used_draft_weights(asked, method, self.artifact, outline.has_kernels)
        try:
            plan = self.planned(outline, outline.copy_bytes(wanted))
        except MemoryPlanError:
            if asked != "auto" or methods()[method].needs_draft_weights or not outline.copy_bytes(wanted):
                raise
            plan, wanted = self.planned(outline, 0), "none"
            logger.warning("no draft weights: the memory has no room for them")
        self.plan, self.draft_weights = plan, wanted
        sizes = plan.num_slots, plan.max_length, plan.num_tokens
        self.config = replace(self.config, max_batch=sizes[0], max_length=sizes[1], cache_tokens=sizes[2])

    def planned(self, outline: Outline, draft_bytes: int) -> MemoryPlan:
        available, most = available_memory(self.source.device), self.source.most_memory
        if most is not None and self.source.device.type == "cpu":
            available = min(available, most)
        return plan_memory(outline, draft_bytes, self.config, self.wishes, available)


def used_draft_weights(
    asked: DraftWeights, method: str, artifact: RoutingArtifact | None, has_kernels: bool
) -> DraftWeights:
    """What `auto` stands for: the copy that the artifact was calibrated with, or 4 bits if the method needs a copy.

    Else it is left to what promises to pay. Where no kernels run the model, an artifact asks for nothing.
    """
    if asked != "auto":
        return asked
    calibrated = artifact.manifest.draft_weights if artifact else "none"
    if calibrated != "none" and has_kernels:
        return calibrated
    return "int4" if methods()[method].needs_draft_weights else "auto"


def warn_of_missing(served: ServedModel, artifact: RoutingArtifact | None) -> None:
    """Tells the log what drafts there are not: without an artifact, or without the copy that its drafts need."""
    if artifact is None:
        logger.warning(
            "no routing artifact: %s is served with method %s and no layer is skipped; "
            "`knn-ssd-offline calibrate` makes an artifact for --artifact",
            served.name,
            served.engine.config.method,
        )
    elif artifact.manifest.has_low_bit_drafts and served.engine.model.low_bit is None:
        domains = [domain for domain, draft in served.drafts.items() if draft.is_low_bit]
        logger.warning(
            "no draft weights: nothing is drafted as the artifact says for %s; "
            "it was calibrated with --draft-weights %s",
            ", ".join(domains),
            artifact.manifest.draft_weights,
        )
