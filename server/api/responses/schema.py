"""The body of POST /v1/responses, and the chat that it stands for."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.responses.input import STATELESS, InputItem, turns
from server.api.responses.tools import FunctionTool, FunctionToolChoice, chat_choice
from server.api.schema.base import Body, Identifier, NoEffect, Text, refusal, text_or_list
from server.api.schema.generation import ChatBody, StreamOptions
from server.api.schema.messages import Counted, Message
from server.api.schema.response_format import JsonSchema, ResponseFormat
from server.api.schema.sampling import SamplingBody
from server.api.schema.template import Effort
from server.api.schema.translation import TranslatedBody
from server.api.schema.unsupported import NOT_HONOURED, NOT_HONOURED_BEYOND_OPENAI

LOGPROBS = "message.output_text.logprobs"

NOT_HONOURED_IN_RESPONSES: NoEffect = {
    **NOT_HONOURED,
    **NOT_HONOURED_BEYOND_OPENAI,
    "access_programs": (None,),
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "image": (None,),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "prompt_cache_options": (None,),
    "truncation": (None, "disabled"),
}


class PlainFormat(Body):
    type: Literal["text", "json_object"]

    @property
    def as_chat(self) -> ResponseFormat:
        return ResponseFormat(type=self.type)


class SchemaFormat(JsonSchema):
    type: Literal["json_schema"]

    @property
    def as_chat(self) -> ResponseFormat:
        fields = self.model_dump(by_alias=True, exclude={"type"})
        return ResponseFormat(type=self.type, json_schema=JsonSchema(**fields))


def kind_of(value: Any) -> str:
    """Tag of a format: only json_schema has fields beside its type."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<schema>" if kind == "json_schema" else "<plain>"


class TextOptions(Body):
    verbosity: Literal["low", "medium", "high"] | None = None
    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")], Discriminator(kind_of)
        ]
        | None
    ) = None


class ReasoningOptions(Body):
    not_honoured: ClassVar[NoEffect] = {
        "context": (None,),
        "generate_summary": (None,),
        "mode": (None,),
        "summary": (None, "auto"),
    }
    effort: Effort | None = None


class ObfuscationOptions(Body):
    include_obfuscation: bool | None = None


SAME = ("parallel_tool_calls", "chat_template_kwargs", "thinking_budget")
"""Fields that mean the same in chats."""


class ChatOfResponse(ChatBody):
    """A chat that came as a response's body; errors of its schema name the field of that body."""

    schema_field: ClassVar[str] = "text.format.schema"


class ResponseBody(TranslatedBody, SamplingBody):
    """POST /v1/responses"""

    not_honoured = NOT_HONOURED_IN_RESPONSES
    own_names: ClassVar[dict[str, str]] = {
        "messages": "input",
        "tool_choice.function.name": "tool_choice.name",
        "tool_choice.allowed_tools.tools": "tool_choice.tools",
    }
    reasons: ClassVar[dict[str, str]] = {"previous_response_id": STATELESS, "conversation": STATELESS}
    input: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[InputItem], Field(min_length=1), Tag("<list>")],
        Discriminator(text_or_list),
        Counted,
    ]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    stream_options: ObfuscationOptions | None = None
    prompt_cache_key: Identifier = None
    tools: Annotated[list[FunctionTool], Field(max_length=128)] | None = None
    tool_choice: FunctionToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[Text, Any] | None = None
    thinking_budget: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def check_logprobs(self) -> Self:
        if self.top_logprobs and not self.has_logprobs:
            raise refusal("top_logprobs", f"Only with include: [{LOGPROBS!r}].")
        return self

    @property
    def has_logprobs(self) -> bool:
        return LOGPROBS in (self.include or [])

    @property
    def is_constrained(self) -> bool:
        is_free = self.text is None or self.text.format is None or self.text.format.type == "text"
        return not is_free or bool(self.tools and self.tool_choice != "none")

    @property
    def messages(self) -> list[Message]:
        first = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        if isinstance(self.input, str):
            return [*first, Message(role="user", content=self.input)]
        return [*first, *turns(self.input)]

    @cached_property
    def chat(self) -> ChatBody:
        """The chat with the same answer; prompt, sampling and grammar are prepared from it as for any chat."""
        shared = {name: getattr(self, name) for name in (*SamplingBody.model_fields, *SAME)}
        return ChatOfResponse(
            **shared,
            messages=self.messages,
            response_format=self.text.format.as_chat if self.text and self.text.format else None,
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.has_logprobs,
            top_logprobs=self.top_logprobs if self.has_logprobs else None,
            tools=[tool.as_chat for tool in self.tools or []],
            tool_choice=chat_choice(self.tool_choice),
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            verbosity=self.text.verbosity if self.text else None,
            stream_options=StreamOptions(**dict(self.stream_options)) if self.stream_options and self.stream else None,
        )
