"""The body of POST /v1/responses, and the chat that it stands for."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, NoEffect, Text, refusal, text_or_list
from server.api.schema.generation import ChatBody
from server.api.schema.messages import Counted, Message, TextPart
from server.api.schema.response_format import JsonSchema, ResponseFormat
from server.api.schema.sampling import Identifier, SamplingBody

LOGPROBS = "message.output_text.logprobs"

NOT_HONOURED: NoEffect = {
    "access_programs": (None,),
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "image": (None,),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "parallel_tool_calls": (None, True, False),
    "previous_response_id": (None,),
    "prompt": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None,),
    "service_tier": (None, "auto", "default"),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "truncation": (None, "disabled"),
}
STATELESS = "This server keeps no answers; send the turns so far as input."


class InputPart(Body):
    """A text of a message; the log-probabilities of an earlier answer may come back with it, and change nothing."""

    not_honoured: ClassVar[NoEffect] = {"annotations": (None, [])}
    type: Literal["input_text", "output_text"]
    text: Text
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """A turn of the conversation: written by the client, or taken from the `output` of an earlier answer."""

    not_honoured: ClassVar[NoEffect] = {"type": (None, "message"), "phase": (None, "commentary", "final_answer")}
    reasons: ClassVar[dict[str, str]] = {"type": "This server takes messages only."}
    id: Identifier = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[InputPart], Tag("<list>")], Discriminator(text_or_list)
    ]

    @property
    def as_chat(self) -> Message:
        if isinstance(self.content, str):
            return Message(role=self.role, content=self.content)
        return Message(role=self.role, content=[TextPart(type="text", text=part.text) for part in self.content])


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
    not_honoured: ClassVar[NoEffect] = {"verbosity": (None, "medium")}
    format: (
        Annotated[
            Annotated[PlainFormat, Tag("<plain>")] | Annotated[SchemaFormat, Tag("<schema>")], Discriminator(kind_of)
        ]
        | None
    ) = None


class ReasoningOptions(Body):
    not_honoured: ClassVar[NoEffect] = {
        "context": (None,),
        "effort": (None, "none"),
        "generate_summary": (None,),
        "mode": (None,),
        "summary": (None, "auto"),
    }


class ObfuscationOptions(Body):
    not_honoured: ClassVar[NoEffect] = {"include_obfuscation": (None, False)}


class ChatOfResponse(ChatBody):
    """A chat that came as a response's body; errors of its schema name the field of that body."""

    schema_field: ClassVar[str] = "text.format.schema"


class ResponseBody(SamplingBody):
    """POST /v1/responses"""

    not_honoured = NOT_HONOURED
    reasons: ClassVar[dict[str, str]] = {"previous_response_id": STATELESS, "conversation": STATELESS}
    input: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[InputMessage], Field(min_length=1), Tag("<list>")],
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
        return bool(self.text and self.text.format and self.text.format.type != "text")

    @property
    def messages(self) -> list[Message]:
        turns = [InputMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        first = [] if self.instructions is None else [Message(role="system", content=self.instructions)]
        return first + [turn.as_chat for turn in turns]

    @property
    def as_chat(self) -> ChatBody:
        """The chat with the same answer; prompt, sampling and grammar are prepared from it as for any chat."""
        shared = {name: getattr(self, name) for name in SamplingBody.model_fields}
        return ChatOfResponse(
            **shared,
            messages=self.messages,
            response_format=self.text.format.as_chat if self.text and self.text.format else None,
            max_completion_tokens=self.max_output_tokens,
            logprobs=self.has_logprobs,
            top_logprobs=self.top_logprobs,
        )
