"""OpenAI's requests as this server honours them: what cannot be honoured is refused by name, never ignored.

Fields that change nothing at a certain value (`logprobs: false`, `tools: []`) are accepted at that value.
"""

from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from server.engine import MAX_DRAFT

NoEffect = dict[str, tuple[Any, ...]]
"""Fields that are not honoured, with the values at which they have no effect."""

NOT_HONOURED: NoEffect = {
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "logit_bias": (None, {}),
    "service_tier": (None, "auto", "default"),
}
NOT_HONOURED_IN_CHAT: NoEffect = {
    **NOT_HONOURED,
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "response_format": (None, {"type": "text"}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
NOT_HONOURED_IN_COMPLETIONS: NoEffect = {
    **NOT_HONOURED,
    "best_of": (None, 1),
    "echo": (None, False),
    "logprobs": (None,),
    "suffix": (None, ""),
}
NOT_HONOURED_IN_MESSAGES: NoEffect = {
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "name": (None,),
    "refusal": (None,),
    "tool_calls": (None, []),
}


class Body(BaseModel):
    """Exact types, no unknown fields, and the fields of `not_honoured` at their values without effect only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    not_honoured: ClassVar[NoEffect] = {}

    @model_validator(mode="before")
    @classmethod
    def drop_without_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in cls.not_honoured.keys() & data.keys():
            if data[name] not in cls.not_honoured[name]:
                raise PydanticCustomError("unsupported", "This server does not support this.", {"field": name})
        return {name: value for name, value in data.items() if name not in cls.not_honoured}


def text_or_list(value: Any) -> str:
    """Tag of the branch of a union whose errors are reported."""
    return "<list>" if isinstance(value, list) else "<text>"


def check_encodable(text: str) -> str:
    """JSON can carry lone surrogates, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "Text should not contain lone surrogates") from error
    return text


Text = Annotated[str, AfterValidator(check_encodable)]


class TextPart(Body):
    type: Literal["text"]
    text: Text


class Message(Body):
    not_honoured = NOT_HONOURED_IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Tag("<list>")], Discriminator(text_or_list)
    ]

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    @property
    def for_template(self) -> dict[str, str]:
        """Chat templates know `system`; OpenAI's newer name for the same role is `developer`."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class StreamOptions(Body):
    not_honoured = {"include_obfuscation": (None, False), "continuous_usage_stats": (None, False)}
    include_usage: bool | None = None


class Speculation(Body):
    """How this request is drafted; an extension. The text is the same whatever is asked for here."""

    method: Literal["plain", "skip", "lookup", "cascade"] | None = None
    max_draft: Annotated[int, Field(ge=0, le=MAX_DRAFT)] | None = None
    domain: str | None = None


StopString = Annotated[Text, Field(min_length=1, max_length=1024)]
Identifier = Annotated[str, Field(max_length=512)] | None


class GenerationBody(Body):
    """What chat and text completions share."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=16), Tag("<list>")],
            Discriminator(text_or_list),
        ]
        | None
    ) = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    speculation: Speculation | None = None
    user: Identifier = None
    safety_identifier: Identifier = None
    metadata: dict[str, str] | None = None

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        if self.stream_options and not self.stream:
            raise PydanticCustomError("unsupported", "Only with stream: true.", {"field": "stream_options"})
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    not_honoured = NOT_HONOURED_IN_CHAT
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    prompt_cache_key: Identifier = None

    @model_validator(mode="after")
    def check_limits(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            message = "It differs from max_completion_tokens, its newer name."
            raise PydanticCustomError("unsupported", message, {"field": "max_tokens"})
        return self


def text_or_ids(value: Any) -> str:
    """Tag of the form of a prompt: text or token ids, one or several."""
    if value and isinstance(value, list) and not isinstance(value[0], str):
        return "<ids of several>" if isinstance(value[0], list) else "<ids>"
    return text_or_list(value)


TokenIds = list[Annotated[int, Field(ge=0)]]


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    not_honoured = NOT_HONOURED_IN_COMPLETIONS
    prompt: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Text], Field(min_length=1, max_length=128), Tag("<list>")]
        | Annotated[TokenIds, Tag("<ids>")]
        | Annotated[list[TokenIds], Field(max_length=128), Tag("<ids of several>")],
        Discriminator(text_or_ids),
    ]

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or token ids."""
        is_single = text_or_ids(self.prompt) in ("<text>", "<ids>")
        return cast("list[str | list[int]]", [self.prompt] if is_single else self.prompt)
