"""OpenAI's response object and its parts; `metrics` among its fields is this server's own."""

from typing import Any, Literal, Self

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from server.api.answers.logprobs import ChatTokenLogprob
from server.api.answers.models import RequestMetrics
from server.api.responses.schema import ResponseBody
from server.engine import SamplingParams
from server.generation import Outcome

Status = Literal["in_progress", "completed", "incomplete", "failed"]


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int

    @classmethod
    def of(cls, prompt_tokens: int, outcome: Outcome, reasoning_tokens: int) -> Self:
        output_tokens = outcome.completion_tokens
        return cls(
            input_tokens=prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=outcome.cached_tokens),
            output_tokens=output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning_tokens),
            total_tokens=prompt_tokens + output_tokens,
        )


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[ChatTokenLogprob] = []


ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: ItemStatus
    content: list[OutputText]


class ReasoningText(BaseModel):
    type: Literal["reasoning_text"] = "reasoning_text"
    text: str


class ReasoningItem(BaseModel):
    """Thoughts before the answer, in full: there is no summary of them."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    summary: list[Any] = []
    content: list[ReasoningText]
    status: ItemStatus


class FunctionCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | ReasoningItem | FunctionCall


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class Failure(BaseModel):
    """The error of a failed response; OpenAI has this one code for all that is not the client's fault."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseAnswer(BaseModel):
    """The answer, beside fields of its request; nothing is stored, even where `store` asked for it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status = "in_progress"
    background: bool = False
    error: Failure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool = False
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[Any]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    metrics: RequestMetrics | None = None


def format_of(body: ResponseBody) -> dict[str, Any]:
    asked = body.text.format if body.text else None
    return asked.model_dump(by_alias=True) if asked else {"type": "text"}


def repeated_fields(body: ResponseBody, sampling: SamplingParams) -> dict[str, Any]:
    """Fields of the request that its answer repeats; temperature and top_p are those applied, defaults included."""
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "temperature": sampling.temperature,
        "text": {"format": format_of(body), "verbosity": (body.text and body.text.verbosity) or "medium"},
        "tool_choice": "auto" if body.tool_choice is None else to_jsonable_python(body.tool_choice),
        "tools": [tool.repeated for tool in body.tools or []],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "user": body.user,
    }
