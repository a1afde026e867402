"""Bodies of chat and text completions; a field that cannot be honoured is refused by name, never ignored.

Fields that change nothing at a certain value (`best_of: 1`, `verbosity: "medium"`) are accepted at that value.
"""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, NoEffect, Text, TokenId, refusal, text_or_list
from server.api.schema.messages import Content, Counted, Message
from server.api.schema.response_format import ResponseFormat
from server.api.schema.sampling import Identifier, SamplingBody
from server.api.schema.tools import Tool, ToolChoice, Toolset
from server.api.schema.unsupported import (
    INSTEAD_IN_COMPLETIONS,
    NOT_HONOURED_IN_CHAT,
    NOT_HONOURED_IN_COMPLETIONS,
)

COMPLETION_TOKENS = 16
"""OpenAI's default length of a text completion; chats go on to the end of the context."""


class StreamOptions(Body):
    not_honoured: ClassVar[NoEffect] = {"include_obfuscation": (None, False), "continuous_usage_stats": (None, False)}
    include_usage: bool | None = None


class GenerationBody(SamplingBody):
    """Fields of chats and text completions, and what the rest of the server asks of either."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    schema_field: ClassVar[str] = "response_format.json_schema.schema"
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        if self.stream_options and not self.stream:
            raise refusal("stream_options", "Only with stream: true.")
        return self

    @property
    @abstractmethod
    def token_limit(self) -> int | None:
        """Most tokens that the answer may have; None where it may go on to the end of the context."""

    @property
    def choices_per_prompt(self) -> int:
        return self.n or 1

    @property
    def toolset(self) -> Toolset | None:
        """The tools that may be called; None where there are none."""
        return None

    @property
    def is_constrained(self) -> bool:
        is_free = self.response_format is None or self.response_format.schema_of_answer is None
        return self.toolset is not None or not is_free

    @property
    def num_logprobs(self) -> int | None:
        """Number of most likely tokens to report beside each token; 0 reports the token alone, None nothing."""
        return None

    @property
    def is_echoed(self) -> bool:
        """Whether the answer's text begins with the prompt."""
        return False

    @property
    def predicted(self) -> str:
        """What the answer is expected to be like; nothing where that is not said."""
        return ""

    @property
    def includes_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Prediction(Body):
    """Text that much of the answer is expected to equal: it is drafted from."""

    type: Literal["content"]
    content: Content

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(GenerationBody):
    """POST /v1/chat/completions"""

    operation = "chat"
    not_honoured = NOT_HONOURED_IN_CHAT
    messages: Annotated[list[Message], Field(min_length=1), Counted]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_cache_key: Identifier = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    prediction: Prediction | None = None

    @model_validator(mode="after")
    def check_limits(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise refusal("max_tokens", "It differs from max_completion_tokens, its newer name.")
        if self.top_logprobs and not self.logprobs:
            raise refusal("top_logprobs", "Only with logprobs: true.")
        return self

    @model_validator(mode="after")
    def check_tools(self) -> Self:
        Toolset.check(self.tools or [], self.tool_choice)
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def toolset(self) -> Toolset | None:
        return Toolset.of(self.tools or [], self.tool_choice, self.parallel_tool_calls is not False)

    @property
    def num_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def predicted(self) -> str:
        return self.prediction.text if self.prediction else ""


def text_or_ids(value: Any) -> str:
    """Tag of a prompt's form: a text, several texts, token ids, or several lists of token ids."""
    if value and isinstance(value, list) and not isinstance(value[0], str):
        return "<ids of several>" if isinstance(value[0], list) else "<ids>"
    return text_or_list(value)


TokenIds = list[TokenId]


class CompletionBody(GenerationBody):
    """POST /v1/completions"""

    operation = "text_completion"
    not_honoured = NOT_HONOURED_IN_COMPLETIONS
    reasons = INSTEAD_IN_COMPLETIONS
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
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

    @property
    def token_limit(self) -> int:
        """Zero where only the prompt's own log-probabilities are asked for."""
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def is_echoed(self) -> bool:
        return bool(self.echo)
