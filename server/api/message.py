"""A message in the making: content and calls of tools, whole or as the changes that a stream tells."""

from server.api.answers import (
    AssistantMessage,
    CalledFunction,
    Delta,
    FunctionDelta,
    ToolCall,
    ToolCallDelta,
)
from server.api.tools.reader import Part


class MessageBuilder:
    """Adds up the parts of one choice."""

    def __init__(self) -> None:
        self.content = ""
        self.calls: list[ToolCall] = []

    def add(self, part: Part) -> None:
        if part.call is None:
            self.content += part.text
        elif part.name is not None and part.id is not None:
            self.calls.append(ToolCall(id=part.id, function=CalledFunction(name=part.name, arguments=part.text)))
        else:
            self.calls[part.call].function.arguments += part.text

    @property
    def message(self) -> AssistantMessage:
        """Without any text beside its calls, the content is null."""
        content = None if self.calls and not self.content else self.content
        return AssistantMessage(content=content, tool_calls=self.calls or None)


def delta_of(part: Part) -> Delta:
    if part.call is None:
        return Delta(content=part.text)
    function = FunctionDelta(name=part.name, arguments=part.text)
    kind = None if part.id is None else "function"
    return Delta(tool_calls=[ToolCallDelta(index=part.call, id=part.id, type=kind, function=function)])
