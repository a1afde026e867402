"""OpenAI's own types as a strict check: nothing missing, nothing of a wrong type, nothing that they do not know."""

from collections.abc import Iterator
from typing import Any, TypeVar, get_args

import openai
from openai.types import Completion, CompletionChoice, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta
from openai.types.responses import Response, ResponseStreamEvent, ResponseTextDeltaEvent

Form = TypeVar("Form", bound=openai.BaseModel)
Keys = dict[type[openai.BaseModel], set[str]]

NULLABLE: Keys = {
    Choice: {"logprobs"},
    ChatCompletionMessage: {"content", "refusal"},
    ChatCompletion: {"usage", "system_fingerprint"},
    ChatCompletionChunk: {"system_fingerprint"},
    Completion: {"system_fingerprint"},
    CompletionChoice: {"logprobs"},
    Response: {"error", "incomplete_details", "instructions", "metadata", "temperature", "top_p", "status", "usage"},
}
"""Keys that OpenAI's reference requires, though its Python types do without where the value is null."""

EXTENSIONS: Keys = {
    ChatCompletion: {"metrics", "route"},
    ChatCompletionChunk: {"metrics", "obfuscation", "route"},
    ChatCompletionMessage: {"reasoning_content"},
    ChoiceDelta: {"reasoning_content"},
    Choice: {"trace"},
    ChunkChoice: {"trace"},
    Completion: {"metrics", "route"},
    CompletionChoice: {"trace"},
    Model: {"max_model_len", "context_length", "capabilities", "revision", "domains", "drafts"},
    Response: {"metrics", "store"},
    ResponseTextDeltaEvent: {"obfuscation"},
}
"""Fields that this server adds; `store` is OpenAI's own, though its types do without."""

EVENTS: dict[str, type[openai.BaseModel]] = {
    get_args(event.model_fields["type"].annotation)[0]: event for event in get_args(get_args(ResponseStreamEvent)[0])
}
"""The forms of a response's events by their type."""


def check_event(data: Any) -> openai.BaseModel:
    return check(data, EVENTS[data["type"]])


def check(data: Any, form: type[Form]) -> Form:
    """The data as OpenAI's type; asserts that each of its parts has all required keys and no unknown one."""
    answer = form.model_validate(data, strict=True)
    for part in parts(answer):
        assert not set(part.model_extra or {}) - EXTENSIONS.get(type(part), set()), type(part)
        assert not NULLABLE.get(type(part), set()) - part.model_fields_set, type(part)
    return answer


def parts(value: Any) -> Iterator[openai.BaseModel]:
    """All models within a value, itself included."""
    if isinstance(value, openai.BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from parts(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            yield from parts(item)
