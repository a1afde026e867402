"""Bodies of chat and text completions; a field that cannot be honoured is refused by name, never ignored.

Fields that change nothing at a certain value (`best_of: 1`, `verbosity: "medium"`) are accepted at that value.
"""

from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal, Self, cast

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Identifier, Text, TokenId, refusal, text_or_list
from server.api.schema.messages import Content, Counted, Message, check_continued
from server.api.schema.response_format import AnswerForm, ResponseFormat
from server.api.schema.sampling import SamplingBody
from server.api.schema.structured_outputs import StructuredOutputs
from server.api.schema.template import TemplateBody
from server.api.schema.tools import ToolChoice, Toolset
from server.api.schema.unsupported import (
    INSTEAD,
    NOT_HONOURED_IN_CHAT,
    NOT_HONOURED_IN_COMPLETIONS,
)

COMPLETION_TOKENS = 16
"""OpenAI's default length of a text completion; chats go on to the end of the context."""


class StreamOptions(Body):
    """What the events of a stream carry beside the answer.

    `continuous_usage_stats` has the usage so far in every chunk of a stream that includes usage; `include_obfuscation`
    pads the events.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationBody(SamplingBody):
    """Fields of chats and text completions, and what the rest of the server asks of either."""

    has_trace = True
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream_options: StreamOptions | None = None
    schema_field: ClassVar[str] = "response_format.json_schema.schema"
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def check_stream_options(self) -> Self:
        if not self.stream and any(dict(self.streaming).values()):
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

    @model_validator(mode="after")
    def check_form(self) -> Self:
        if self.structured_outputs and self.response_format and self.response_format.form:
            raise refusal("structured_outputs", "Not together with a response_format.")
        return self

    @property
    def form(self) -> AnswerForm | None:
        """What the answer has to be, where it calls no tool; None where any text will do."""
        if self.structured_outputs:
            return self.structured_outputs.form
        return self.response_format.form if self.response_format else None

    @property
    def form_field(self) -> str:
        """The field that says what the answer has to be, as errors name it."""
        return "structured_outputs" if self.structured_outputs else self.schema_field

    @property
    def is_constrained(self) -> bool:
        return self.toolset is not None or self.form is not None

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
    def most_thoughts(self) -> int | None:
        """Most tokens that the model may think before its answer; None where it is free."""
        return None

    @property
    def streaming(self) -> StreamOptions:
        return self.stream_options or StreamOptions()


class Prediction(Body):
    """Text that much of the answer is expected to equal: it is drafted from."""

    type: Literal["content"]
    content: Content

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(TemplateBody, GenerationBody):
    """POST /v1/chat/completions"""

    operation = "chat"
    not_honoured = NOT_HONOURED_IN_CHAT
    reasons = INSTEAD
    messages: Annotated[list[Message], Field(min_length=1), Counted]
    thinking_budget: Annotated[int, Field(ge=0)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    prompt_cache_key: Identifier = None
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
    def check_last(self) -> Self:
        if self.continue_final_message:
            check_continued(self.messages)
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
    def most_thoughts(self) -> int | None:
        """Zero where thinking is turned off: a template may not know how to."""
        return 0 if self.reasoning_effort == "none" else self.thinking_budget

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
    reasons = INSTEAD
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    suffix: Text | None = None
    prompt: Annotated[
        Annotated[Text, Tag("<text>")]
        | Annotated[list[Text], Field(min_length=1, max_length=128), Tag("<list>")]
        | Annotated[TokenIds, Tag("<ids>")]
        | Annotated[list[TokenIds], Field(max_length=128), Tag("<ids of several>")],
        Discriminator(text_or_ids),
    ]

    @model_validator(mode="after")
    def check_suffix(self) -> Self:
        if self.suffix and (self.is_echoed or text_or_ids(self.prompt).startswith("<ids")):
            raise refusal("suffix", "Only with prompts of text, and without echo.")
        return self

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
