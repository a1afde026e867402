"""Messages of a chat: who said what, which tools were called, and what they returned."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Text, invalid, missing, refusal, text_or_list
from server.api.schema.tools import ToolCall
from server.api.schema.unsupported import NOT_HONOURED_IN_MESSAGES

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


class TextPart(Body):
    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextPart], Tag("<list>")], Discriminator(text_or_list)
]


class Message(Body):
    not_honoured = NOT_HONOURED_IN_MESSAGES
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    tool_calls: Annotated[list[ToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[Text, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def check_role(self) -> Self:
        """Only a message with tool calls may lack content; a result of a tool, and nothing else, names its call."""
        if self.content is None and not self.tool_calls:
            raise missing("content")
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
    def for_template(self) -> dict[str, Any]:
        """The message as chat templates want it; `developer`, OpenAI's newer name for `system`, is unknown to them."""
        turn: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.text}
        if self.tool_calls:
            turn["tool_calls"] = [call.for_template for call in self.tool_calls]
        return turn if self.tool_call_id is None else turn | {"tool_call_id": self.tool_call_id}
