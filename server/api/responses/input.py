"""The items of a response's input, and the turns of a chat that they stand for."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from server.api.schema.base import Body, Identifier, NoEffect, Text, text_or_list
from server.api.schema.messages import AnyText, Message, TextPart
from server.api.schema.tools import CalledFunction, ToolCall

STATELESS = "This server keeps no answers; send the turns so far as input."
NOT_HONOURED_IN_ITEMS: NoEffect = {"caller": (None, {"type": "direct"}), "namespace": (None,)}
Status = Literal["in_progress", "completed", "incomplete"] | None


class InputPart(AnyText):
    """A text of a message; the log-probabilities of an earlier answer may come back with it, and change nothing."""

    not_honoured: ClassVar[NoEffect] = {"annotations": (None, [])}
    type: Literal["input_text", "output_text"]
    logprobs: list[Any] | None = None

    @property
    def as_chat(self) -> TextPart:
        return TextPart(type="text", text=self.text)


InputContent = Annotated[
    Annotated[Text, Tag("<text>")] | Annotated[list[InputPart], Tag("<list>")], Discriminator(text_or_list)
]


def chat_content(content: InputContent) -> str | list[TextPart]:
    return content if isinstance(content, str) else [part.as_chat for part in content]


class InputMessage(Body):
    """A turn of the conversation: written by the client, or taken from the `output` of an earlier answer."""

    not_honoured: ClassVar[NoEffect] = {"type": (None, "message"), "phase": (None, "commentary", "final_answer")}
    reasons: ClassVar[dict[str, str]] = {
        "type": f"This server takes messages, calls of functions, their outputs and reasoning. {STATELESS}"
    }
    id: Identifier = None
    status: Status = None
    role: Literal["system", "developer", "user", "assistant"]
    content: InputContent


class ReasoningContent(Body):
    type: Literal["reasoning_text", "text"]
    text: Text


class ReasoningInput(Body):
    """Thoughts of an earlier answer; what only OpenAI's own servers can read of them changes nothing."""

    type: Literal["reasoning"]
    id: Identifier = None
    status: Status = None
    summary: list[Any] | None = None
    encrypted_content: str | None = None
    content: list[ReasoningContent] | None = None

    @property
    def text(self) -> str:
        return "\n".join(part.text for part in self.content or [])


class CallInput(CalledFunction):
    """A call that an earlier answer made."""

    not_honoured: ClassVar[NoEffect] = {
        "caller": (None, {"type": "direct"}),
        "namespace": (None,),
        "async": (None, False),
    }
    type: Literal["function_call"]
    id: Identifier = None
    status: Status = None
    call_id: Annotated[Text, Field(max_length=256)]

    @property
    def as_chat(self) -> ToolCall:
        function = CalledFunction(name=self.name, arguments=self.arguments)
        return ToolCall(id=self.call_id, type="function", function=function)


class CallOutput(Body):
    """What such a call returned."""

    not_honoured = NOT_HONOURED_IN_ITEMS
    type: Literal["function_call_output"]
    id: Identifier = None
    status: Status = None
    call_id: Annotated[Text, Field(max_length=256)]
    name: Identifier = None
    output: InputContent


TAGS = {"function_call": "<call>", "function_call_output": "<output>", "reasoning": "<reasoning>"}


def kind_of_item(value: Any) -> str:
    """Tag of an item; whatever has no type of its own is a message."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return TAGS.get(str(kind), "<message>")


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[CallInput, Tag("<call>")]
    | Annotated[CallOutput, Tag("<output>")]
    | Annotated[ReasoningInput, Tag("<reasoning>")],
    Discriminator(kind_of_item),
]


def turns(items: list[InputItem]) -> list[Message]:
    """The chat's messages: thoughts, text and calls that follow each other are one message of the assistant."""
    found: list[Message] = []
    thoughts = ""
    for item in items:
        if isinstance(item, ReasoningInput):
            thoughts = item.text
            continue
        last = found[-1] if found and found[-1].role == "assistant" else None
        if isinstance(item, CallOutput):
            found.append(Message(role="tool", tool_call_id=item.call_id, content=chat_content(item.output)))
        elif isinstance(item, InputMessage):
            own = thoughts if item.role == "assistant" else ""
            found.append(Message(role=item.role, content=chat_content(item.content), reasoning_content=own or None))
        elif last and not thoughts:
            found[-1] = last.model_copy(update={"tool_calls": [*(last.tool_calls or []), item.as_chat]})
        else:
            found.append(Message(role="assistant", tool_calls=[item.as_chat], reasoning_content=thoughts or None))
        thoughts = ""
    return found
