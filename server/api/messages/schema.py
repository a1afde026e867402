"""The bodies of POST /v1/messages and /v1/messages/count_tokens, and the chat that they stand for."""

from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from server.api.messages.blocks import Texts, Turn, joined
from server.api.schema.base import Body, Echoed, Identifier, NoEffect, Text, missing, refusal
from server.api.schema.generation import ChatBody
from server.api.schema.messages import Counted, Message
from server.api.schema.response_format import JsonSchema, ResponseFormat
from server.api.schema.sampling import SamplingBody, StopString
from server.api.schema.template import Effort
from server.api.schema.tools import FunctionChoice, FunctionDefinition, FunctionName, NamedTool, Tool, ToolChoice
from server.api.schema.translation import TranslatedBody

NOT_HONOURED: NoEffect = {
    "container": (None,),
    "context_management": (None, {}, {"edits": []}, {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}),
    "diagnostics": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
}


class ClientTool(Body):
    """A tool that the client runs; those that Anthropic defines (`bash_20250124`) are refused."""

    not_honoured: ClassVar[NoEffect] = {
        "allowed_callers": (None, [], ["direct"]),
        "defer_loading": (None, False),
        "type": (None, "custom"),
    }
    reasons: ClassVar[dict[str, str]] = {"type": "This server takes tools with an input_schema only."}
    name: FunctionName
    description: Text | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    eager_input_streaming: bool | None = None
    cache_control: Echoed = None

    @property
    def as_chat(self) -> Tool:
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return Tool(type="function", function=function)


class Choice(Body):
    type: Literal["auto", "any", "tool", "none"]
    name: FunctionName | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def check_name(self) -> Self:
        if self.type == "tool" and self.name is None:
            raise missing("name")
        return self

    @property
    def as_chat(self) -> ToolChoice:
        if self.type == "tool":
            return NamedTool(type="function", function=FunctionChoice(name=self.name or ""))
        return "required" if self.type == "any" else self.type


class ThinkingOptions(Body):
    """Whether the model thinks, and how long at most."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class SchemaFormat(Body):
    type: Literal["json_schema"]
    content: Annotated[dict[str, Any], Field(alias="schema")]

    @property
    def as_chat(self) -> ResponseFormat:
        named = JsonSchema.model_validate({"name": "answer", "schema": self.content})
        return ResponseFormat(type="json_schema", json_schema=named)


class OutputOptions(Body):
    effort: Effort | None = None
    format: SchemaFormat | None = None


class Metadata(Body):
    user_id: Identifier = None


class CountBody(TranslatedBody):
    """POST /v1/messages/count_tokens"""

    not_honoured = NOT_HONOURED
    own_names: ClassVar[dict[str, str]] = {"tool_choice.function.name": "tool_choice.name"}
    model: str
    messages: Annotated[list[Turn], Field(min_length=1), Counted]
    system: Texts | None = None
    tools: Annotated[list[ClientTool], Field(max_length=128)] | None = None
    tool_choice: Choice | None = None
    thinking: ThinkingOptions | None = None
    output_config: OutputOptions | None = None
    cache_control: Echoed = None
    chat_template_kwargs: dict[Text, Any] | None = None

    @property
    def effort(self) -> Effort | None:
        """Without a word about thinking the template decides."""
        if self.thinking is None:
            return self.output_config.effort if self.output_config else None
        if self.thinking.type == "disabled":
            return "none"
        return (self.output_config and self.output_config.effort) or "medium"

    @property
    def chat_fields(self) -> dict[str, Any]:
        first = [Message(role="system", content=joined(self.system))] if self.system else []
        messages = [*first, *(message for turn in self.messages for message in turn.as_chat)]
        form = self.output_config.format if self.output_config else None
        return {
            "model": self.model,
            "messages": messages,
            "tools": [tool.as_chat for tool in self.tools or []],
            "tool_choice": self.tool_choice.as_chat if self.tool_choice else None,
            "parallel_tool_calls": not (self.tool_choice and self.tool_choice.disable_parallel_tool_use),
            "reasoning_effort": self.effort,
            "thinking_budget": self.thinking.budget_tokens if self.thinking else None,
            "chat_template_kwargs": self.chat_template_kwargs,
            "continue_final_message": is_begun(messages[-1]) or None,
            "response_format": form.as_chat if form else None,
        }

    @cached_property
    def chat(self) -> ChatBody:
        """The chat with the same prompt."""
        return ChatOfMessages(**self.chat_fields)


class ChatOfMessages(ChatBody):
    """A chat that came in Anthropic's form; errors of its schema name the field of that."""

    schema_field: ClassVar[str] = "output_config.format.schema"


class MessagesBody(CountBody, SamplingBody):
    """POST /v1/messages"""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: Annotated[list[StopString], Field(max_length=16)] | None = None
    metadata: Metadata | None = None  # type: ignore[assignment]

    @property
    def is_constrained(self) -> bool:
        has_tools = bool(self.tools) and (self.tool_choice is None or self.tool_choice.type != "none")
        return has_tools or bool(self.output_config and self.output_config.format)

    @model_validator(mode="after")
    def check_stops(self) -> Self:
        if self.stop is not None:
            raise refusal("stop", "Its name is stop_sequences here.")
        return self

    @cached_property
    def chat(self) -> ChatBody:
        """The chat with the same answer; prompt, sampling and grammar are prepared from it as for any chat."""
        own = {"model", "metadata", "stop"}
        shared = {name: getattr(self, name) for name in SamplingBody.model_fields if name not in own}
        return ChatOfMessages(**shared, **self.chat_fields, stop=self.stop_sequences, max_tokens=self.max_tokens)


def is_begun(message: Message) -> bool:
    """Whether the last message is the beginning of the answer."""
    return message.role == "assistant" and not message.tool_calls
