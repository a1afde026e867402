"""Anthropic's message and its parts; `metrics` among its fields is this server's own."""

from typing import Any, Literal, Self

from pydantic import BaseModel

from server.api.answers.models import RequestMetrics
from server.generation import Outcome

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(BaseModel):
    """Tokens of the prompt that were read, those that were known before, and those of the answer."""

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, outcome: Outcome) -> Self:
        cached = outcome.cached_tokens
        return cls(
            input_tokens=prompt_tokens - cached,
            cache_read_input_tokens=cached,
            output_tokens=outcome.completion_tokens,
        )


class TextAnswer(BaseModel):
    type: Literal["text"] = "text"
    text: str = ""


class ThinkingAnswer(BaseModel):
    """Thoughts in full; without a signature, which only Anthropic's own servers need."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class ToolUseAnswer(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = {}


AnswerBlock = TextAnswer | ThinkingAnswer | ToolUseAnswer


class MessageAnswer(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[AnswerBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: MessageUsage
    metrics: RequestMetrics | None = None


class TokenCount(BaseModel):
    input_tokens: int
