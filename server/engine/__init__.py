"""The inference engine: token ids and tensors in and out. These are the names that other packages use."""

from server.engine.artifact import (
    ArtifactError,
    DomainRecord,
    Manifest,
    MaskRecord,
    RoutingArtifact,
)
from server.engine.cache import KVCache, Row, TokenBatch
from server.engine.checkpoint import Checkpoint, load_checkpoint
from server.engine.engine import Engine
from server.engine.grammar import CompiledGrammar, Grammar, GrammarCompiler, GrammarError, json_rule
from server.engine.model import Decoder
from server.engine.requests import EngineConfig, PromptTooLongError
from server.engine.router import Router, prompt_vector, similarities
from server.engine.sequence import Emission, GenerationRequest, Sequence
from server.engine.tokens import ChatError, TextCodec, TextStream, held_back
from server.engine.tool_format import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat
from server.engine.types import (
    FULL,
    MAX_DRAFT,
    OTHER_DOMAIN,
    UNADJUSTED,
    UNROUTED,
    Adjustments,
    FinishReason,
    Method,
    Route,
    RowStats,
    SamplingParams,
    SequenceStats,
    SkipMask,
    StepStats,
    StopConditions,
    TokenLogprobs,
)
from server.engine.vocabulary import TokenText, Vocabulary
from server.engine.weights import CheckpointError, DecoderConfig

__all__ = [
    "FULL",
    "GENERIC",
    "HERMES",
    "LLAMA",
    "MAX_DRAFT",
    "MISTRAL",
    "OTHER_DOMAIN",
    "UNADJUSTED",
    "UNROUTED",
    "Adjustments",
    "ArtifactError",
    "ChatError",
    "Checkpoint",
    "CheckpointError",
    "CompiledGrammar",
    "Decoder",
    "DecoderConfig",
    "DomainRecord",
    "Emission",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "GenerationRequest",
    "Grammar",
    "GrammarCompiler",
    "GrammarError",
    "KVCache",
    "Manifest",
    "MaskRecord",
    "Method",
    "PromptTooLongError",
    "Route",
    "Router",
    "RoutingArtifact",
    "Row",
    "RowStats",
    "SamplingParams",
    "Sequence",
    "SequenceStats",
    "SkipMask",
    "StepStats",
    "StopConditions",
    "TextCodec",
    "TextStream",
    "TokenBatch",
    "TokenLogprobs",
    "TokenText",
    "ToolFormat",
    "Vocabulary",
    "held_back",
    "json_rule",
    "load_checkpoint",
    "prompt_vector",
    "similarities",
]
