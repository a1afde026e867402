"""OpenAI's answers: whole ones, chunks of a stream, usage; and this server's `metrics` beside them.

Usage follows OpenAI's names, `metrics` follows vLLM's per-request metrics with the domain added.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, SerializerFunctionWrapHandler, model_serializer

from server.api.answers.drafts import DraftCard
from server.api.answers.logprobs import ChatLogprobs, TextLogprobs
from server.api.answers.tool_calls import Sparse, ToolCall, ToolCallDelta
from server.api.answers.trace import RouteCard, TraceStep
from server.engine import FinishReason
from server.generation import Outcome


class PromptTokensDetails(BaseModel):
    cached_tokens: int = 0
    audio_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    """Drafted tokens that the full model accepted or rejected, under the names of OpenAI's predicted outputs."""

    accepted_prediction_tokens: int
    rejected_prediction_tokens: int
    reasoning_tokens: int = 0
    audio_tokens: int = 0


class Usage(Sparse):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
    """Both are known at the end of an answer only."""

    @classmethod
    def so_far(cls, prompt_tokens: int, completion_tokens: int) -> Self:
        """Usage of an answer that goes on."""
        total_tokens = prompt_tokens + completion_tokens
        return cls(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=total_tokens)

    @classmethod
    def of(cls, prompt_tokens: int, num_prompts: int, outcomes: list[Outcome], reasoning_tokens: int = 0) -> Self:
        """Usage of a request: its prompts counted once, its choices, which are in the prompts' order, added up."""
        each = max(len(outcomes) // num_prompts, 1)
        cached = sum(
            min(outcome.cached_tokens for outcome in outcomes[i : i + each]) for i in range(0, len(outcomes), each)
        )
        completion_tokens = sum(outcome.completion_tokens for outcome in outcomes)
        accepted = sum(outcome.stats.num_accepted for outcome in outcomes)
        drafted = sum(outcome.stats.num_drafted for outcome in outcomes)
        return cls(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
            completion_tokens_details=CompletionTokensDetails(
                accepted_prediction_tokens=accepted,
                rejected_prediction_tokens=drafted - accepted,
                reasoning_tokens=reasoning_tokens,
            ),
        )


class SpeculativeDecoding(BaseModel):
    """The drafts of one answer and how they fared; rates are null where nothing was drafted.

    `draft` is the one of its domain; lookup and low-bit draft beside it.
    `acceptance_histogram[i]` counts the drafts of which i tokens were accepted: [2, 0, 5] is two drafts with none
    and five with two.
    """

    domain: str
    similarity: float | None
    method: str
    draft: DraftCard
    mean_acceptance_length: float | None
    draft_acceptance_rate: float | None
    acceptance_histogram: list[int]
    num_spec_steps: int
    num_accepted_draft_tokens: int
    num_draft_tokens: int
    num_spec_tokens: int

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        stats = outcome.stats
        histogram = [stats.accepted_per_step[i] for i in range(outcome.longest_draft + 1)]
        return cls(
            domain=outcome.route.domain,
            similarity=outcome.route.similarity,
            method=outcome.method,
            draft=DraftCard.of(outcome.route.draft),
            mean_acceptance_length=stats.mean_accepted_length,
            draft_acceptance_rate=stats.acceptance,
            acceptance_histogram=histogram,
            num_spec_steps=stats.num_drafts,
            num_accepted_draft_tokens=stats.num_accepted,
            num_draft_tokens=stats.num_drafted,
            num_spec_tokens=outcome.longest_draft,
        )


class RequestMetrics(BaseModel):
    """Milliseconds of one answer, each part after the one before: queue, prompt to first token, first to last token.

    Rates count the tokens after the first; they are null where there is only one.
    """

    queue_time_ms: float
    time_to_first_token_ms: float
    generation_time_ms: float
    mean_itl_ms: float | None
    tokens_per_second: float | None
    speculative_decoding: SpeculativeDecoding

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        seconds, num_further = outcome.decode_seconds, outcome.completion_tokens - 1
        has_rate = num_further > 0 and seconds > 0
        return cls(
            queue_time_ms=outcome.queue_seconds * 1000,
            time_to_first_token_ms=outcome.prefill_seconds * 1000,
            generation_time_ms=seconds * 1000,
            mean_itl_ms=seconds * 1000 / num_further if has_rate else None,
            tokens_per_second=num_further / seconds if has_rate else None,
            speculative_decoding=SpeculativeDecoding.of(outcome),
        )


ChoiceEnd = Literal["stop", "length", "tool_calls"]
"""OpenAI's `finish_reason` of a choice."""
CHOICE_ENDS: dict[FinishReason, ChoiceEnd] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}
"""The engine's endings that an answer can have; a cancelled one has no reader, and an error becomes an `ApiError`."""


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    """The thoughts before the content, where a model has them: an extension that others have too."""
    tool_calls: list[ToolCall] | None = None

    @model_serializer(mode="wrap")
    def without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Fields that few messages have are left out, rather than null, as OpenAI does."""
        fields: dict[str, Any] = serialize(self)
        absent = {name for name in ("reasoning_content", "tool_calls") if not fields[name]}
        return {name: fields[name] for name in fields if name not in absent}


def is_none(value: Any) -> bool:
    return value is None


Trace = Annotated[list[TraceStep] | None, Field(exclude_if=is_none)]
"""There only where it was asked for."""


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: ChoiceEnd
    trace: Trace = None


class TextChoice(BaseModel):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: ChoiceEnd | None
    trace: Trace = None


class Delta(Sparse):
    """The part that a chunk adds to a message; fields to which nothing is added are left out."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChoiceEnd | None = None
    trace: Trace = None


class Answer(BaseModel):
    """Fields of all answers and chunks; `metrics` is null where there is more than one choice.

    `route` is there where a trace was asked for, of one prompt; in a stream once.
    """

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[BaseModel]
    usage: Usage | None = None
    metrics: RequestMetrics | None = None
    route: Annotated[RouteCard | None, Field(exclude_if=is_none)] = None


class ChatCompletion(Answer):
    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]


class ChatCompletionChunk(Answer):
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChunkChoice]


class TextCompletion(Answer):
    """A whole text completion, and also a chunk of one."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextChoice]


class Capabilities(BaseModel):
    """What requests to the model may ask for.

    `tools` are native where its chat template knows them, and else described to it in words. `infill` is text between
    a prompt and a suffix.
    """

    input: list[str] = ["text"]
    chat: bool
    tools: Literal["native", "described"]
    structured_outputs: bool = True
    thinking: bool
    infill: bool
    embeddings: bool = False


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "knn-ssd-server"
    max_model_len: int
    revision: str | None = None
    """The commit of a model of the hub."""
    context_length: int
    """The same, under the name that others have for it."""
    capabilities: Capabilities
    domains: list[str]
    drafts: dict[str, DraftCard]
    """By domain."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]
