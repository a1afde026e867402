"""The inference engine: token ids and tensors in and out. These are the names that other packages use."""

from server.engine.config import DecoderConfig, EngineConfig
from server.engine.engine import Engine
from server.engine.history.file import HistoryError, load_counts, save_counts
from server.engine.history.history import answer_counts
from server.engine.kvcache.batch import Row, TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.masks.artifact import RoutingArtifact
from server.engine.masks.manifest import DomainRecord, DraftRecord, JsonMask, Manifest, PatchRecord
from server.engine.masks.router import Router, prompt_vector, similarities
from server.engine.masks.tensors import ArtifactError
from server.engine.memory import available_memory
from server.engine.model.checkpoint import Checkpoint, load_checkpoint
from server.engine.model.decoder import Decoder
from server.engine.model.default_model import DEFAULT_ARTIFACT, load_model, public_name
from server.engine.model.draft_head import DraftHead
from server.engine.model.draft_weights import add_draft
from server.engine.model.footprint import Outline
from server.engine.model.kernels import kernel_build
from server.engine.model.placement import Activations, DraftWeights, DtypeName, Quantization, parse_device, parse_dtype
from server.engine.model.threads import MAX_THREADS, use_threads
from server.engine.model.timing import interleaved_quartiles
from server.engine.model.weights import CheckpointError
from server.engine.plan import MemoryPlan, MemoryPlanError, Wishes, plan_memory
from server.engine.requests import GenerationRequest, PromptTooLongError
from server.engine.sampling.grammar import (
    CompiledGrammar,
    Grammar,
    GrammarCompiler,
    GrammarError,
    can_enforce_pattern,
    json_rule,
)
from server.engine.sequence import Emission, Sequence
from server.engine.speculation.base import Method, method_named, methods
from server.engine.text.codec import ChatError, TextCodec, TextStream, held_back
from server.engine.text.thinking import THINK_BEGIN, THINK_END, Thinking
from server.engine.text.tool_format import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat
from server.engine.text.trace import StepTexts, TextTrace
from server.engine.text.vocabulary import TokenText, Vocabulary
from server.engine.types import (
    EMPTY_MASK,
    FULL_MODEL,
    MAX_DRAFT,
    OTHER_DOMAIN,
    PLAIN,
    UNADJUSTED,
    UNROUTED,
    Adjustments,
    DraftModel,
    DraftVocabulary,
    FinishReason,
    Patch,
    Place,
    Route,
    RowStats,
    SamplingParams,
    SequenceStats,
    SkipMask,
    StepStats,
    StopConditions,
    ThinkingBudget,
    TokenLogprobs,
    TracedStep,
)

__all__ = [
    "DEFAULT_ARTIFACT",
    "EMPTY_MASK",
    "FULL_MODEL",
    "GENERIC",
    "HERMES",
    "LLAMA",
    "MAX_DRAFT",
    "MAX_THREADS",
    "MISTRAL",
    "OTHER_DOMAIN",
    "PLAIN",
    "THINK_BEGIN",
    "THINK_END",
    "UNADJUSTED",
    "UNROUTED",
    "Activations",
    "Adjustments",
    "ArtifactError",
    "ChatError",
    "Checkpoint",
    "CheckpointError",
    "CompiledGrammar",
    "Decoder",
    "DecoderConfig",
    "DomainRecord",
    "DraftHead",
    "DraftModel",
    "DraftRecord",
    "DraftVocabulary",
    "DraftWeights",
    "DtypeName",
    "Emission",
    "Engine",
    "EngineConfig",
    "FinishReason",
    "GenerationRequest",
    "Grammar",
    "GrammarCompiler",
    "GrammarError",
    "HistoryError",
    "JsonMask",
    "KVCache",
    "Manifest",
    "MemoryPlan",
    "MemoryPlanError",
    "Method",
    "Outline",
    "Patch",
    "PatchRecord",
    "Place",
    "PromptTooLongError",
    "Quantization",
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
    "StepTexts",
    "StopConditions",
    "TextCodec",
    "TextStream",
    "TextTrace",
    "Thinking",
    "ThinkingBudget",
    "TokenBatch",
    "TokenLogprobs",
    "TokenText",
    "ToolFormat",
    "TracedStep",
    "Vocabulary",
    "Wishes",
    "add_draft",
    "answer_counts",
    "available_memory",
    "can_enforce_pattern",
    "held_back",
    "interleaved_quartiles",
    "json_rule",
    "kernel_build",
    "load_checkpoint",
    "load_counts",
    "load_model",
    "method_named",
    "methods",
    "parse_device",
    "parse_dtype",
    "plan_memory",
    "prompt_vector",
    "public_name",
    "save_counts",
    "similarities",
    "use_threads",
]
