"""Messages of a chat: who said what, which tools were called, and what they returned."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Echoed, Identifier, NoEffect, Text, invalid, missing, refusal, text_or_list
from server.api.schema.tools import ToolCall
from server.api.schema.unsupported import NOT_HONOURED_IN_MESSAGES

TEXT_ONLY = "This model reads text only; it takes no images, audio or files."
NOT_TEXT = (
    "audio_url",
    "document",
    "file",
    "image",
    "image_url",
    "input_audio",
    "input_file",
    "input_image",
    "video_url",
)
"""Kinds of parts that other models read, in OpenAI's forms and Anthropic's."""
MAX_PARTS = 4096
"""Most messages of a request, their parts included: 100,000 would take a second to check, and all others that long."""


def check_count(messages: Any) -> Any:
    """Refuses too many messages and parts before any of them is looked at."""
    if isinstance(messages, list):
        contents = [message.get("content") for message in messages if isinstance(message, dict)]
        count = len(messages) + sum(len(content) for content in contents if isinstance(content, list))
        if count > MAX_PARTS:
            raise invalid("", f"There are {count:,} messages and parts, and at most {MAX_PARTS:,} are taken")
    return messages


Counted = BeforeValidator(check_count)


class AnyText(Body):
    """A text within a message, in any of the forms; other kinds of parts are refused in words."""

    type: str
    text: Text
    cache_control: Echoed = None

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type") in NOT_TEXT:
            raise refusal("type", TEXT_ONLY)
        return data


class TextPart(AnyText):
    not_honoured: ClassVar[NoEffect] = {"annotations": (None, [])}
    type: Literal["text"]


Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Tag("<list>")], Discriminator(text_or_list)
]


def check_continued(messages: list["Message"]) -> None:
    """Refuses messages that no answer can go on with."""
    last = messages[-1]
    if last.role != "assistant" or last.tool_calls or not last.text:
        raise refusal("continue_final_message", "Only where the last message is text of the assistant.")


class Message(Body):
    """A turn of a chat; `id`, `cache_control` and `provider_specific_fields` are what clients keep beside it."""

    not_honoured = NOT_HONOURED_IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant", "tool"]
    name: Identifier = None
    content: Content | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None
    """Another name of the same: an assistant's thoughts before the content, for templates that show them."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None
    id: Identifier = None
    cache_control: Echoed = None
    provider_specific_fields: Echoed = None

    @model_validator(mode="after")
    def check_role(self) -> Self:
        """Only calls and thoughts make up for content; a result of a tool, and nothing else, names its call."""
        if self.content is None and not self.tool_calls and not self.thoughts:
            raise missing("content")
        if self.thoughts and self.role != "assistant":
            raise refusal("reasoning_content", "Only messages of the assistant have it.")
        if self.tool_calls and self.role != "assistant":
            raise refusal("tool_calls", "Only messages of the assistant have tool calls.")
        if self.role == "tool" and self.tool_call_id is None:
            raise missing("tool_call_id")
        if self.role != "tool" and self.tool_call_id is not None:
            raise refusal("tool_call_id", "Only messages of role tool answer a tool call.")
        return self

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "\n".join(part.text for part in self.content)
        return self.content or ""

    @property
    def thoughts(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def for_template(self) -> dict[str, Any]:
        """The message as chat templates want it; `developer`, OpenAI's newer name for `system`, is unknown to them."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.name is not None:
            turn["name"] = self.name
        if self.thoughts:
            turn["reasoning_content"] = self.thoughts
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template for call in self.tool_calls]
        return turn if self.tool_call_id is None else turn | {"tool_call_id": self.tool_call_id}
