"""The turns of a conversation in Anthropic's form, made of blocks, and the chat's messages that they stand for."""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Echoed, NoEffect, Text, check_encodable, invalid, text_or_list
from server.api.schema.json_schema import MAX_DEPTH, depth
from server.api.schema.messages import AnyText, Message, TextPart
from server.api.schema.tools import CalledFunction, ToolCall

Identity = Annotated[Text, Field(max_length=256)]


class TextBlock(AnyText):
    not_honoured: ClassVar[NoEffect] = {"citations": (None, [])}
    type: Literal["text"]


Texts = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[TextBlock], Tag("<list>")], Discriminator(text_or_list)
]


def joined(content: Texts | None) -> str:
    return content if isinstance(content, str) else "\n".join(block.text for block in content or [])


class ThinkingBlock(Body):
    """Thoughts of an earlier answer; this server signs none, and needs no signature."""

    type: Literal["thinking"]
    thinking: Text
    signature: Text | None = None


class RedactedThinking(Body):
    """Thoughts that only Anthropic's own servers can read; they change nothing."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUse(Body):
    """A call that an earlier answer made."""

    not_honoured: ClassVar[NoEffect] = {"caller": (None, {"type": "direct"}), "toolset_name": (None,)}
    type: Literal["tool_use"]
    id: Identity
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    input: dict[str, Any]
    cache_control: Echoed = None

    @model_validator(mode="after")
    def check_input(self) -> "ToolUse":
        if depth(self.input) > MAX_DEPTH:
            raise invalid("input", f"It is nested more than {MAX_DEPTH} levels deep")
        check_encodable(json.dumps(self.input, ensure_ascii=False), field="input")
        return self

    @property
    def as_chat(self) -> ToolCall:
        function = CalledFunction(name=self.name, arguments=json.dumps(self.input, ensure_ascii=False))
        return ToolCall(id=self.id, type="function", function=function)


class ToolResult(Body):
    """What such a call returned; that it failed is for the model to read in its text."""

    type: Literal["tool_result"]
    tool_use_id: Identity
    content: Texts | None = None
    is_error: bool | None = None
    cache_control: Echoed = None


TAGS = {
    "redacted_thinking": "<redacted>",
    "thinking": "<thinking>",
    "tool_result": "<result>",
    "tool_use": "<use>",
}


def kind_of_block(value: Any) -> str:
    """Tag of a block; whatever is of no other kind should be text."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAGS.get(str(kind), "<text>")


Block = Annotated[
    Annotated[TextBlock, Tag("<text>")]
    | Annotated[ThinkingBlock, Tag("<thinking>")]
    | Annotated[RedactedThinking, Tag("<redacted>")]
    | Annotated[ToolUse, Tag("<use>")]
    | Annotated[ToolResult, Tag("<result>")],
    Discriminator(kind_of_block),
]


class Turn(Body):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[Text, Tag("<text>")] | Annotated[list[Block], Tag("<list>")], Discriminator(text_or_list)
    ]

    @property
    def as_chat(self) -> list[Message]:
        """A user's turn has a message for each result of a tool, an assistant's is one with thoughts and calls."""
        if isinstance(self.content, str):
            return [Message(role=self.role, content=self.content)]
        texts = [TextPart(type="text", text=block.text) for block in self.content if isinstance(block, TextBlock)]
        if self.role == "assistant":
            thoughts = "\n".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))
            calls = [block.as_chat for block in self.content if isinstance(block, ToolUse)]
            return [
                Message(role="assistant", content=texts, reasoning_content=thoughts or None, tool_calls=calls or None)
            ]
        results = [
            Message(role="tool", tool_call_id=block.tool_use_id, content=joined(block.content))
            for block in self.content
            if isinstance(block, ToolResult)
        ]
        return [*results, *([Message(role=self.role, content=texts)] if texts or not results else [])]
