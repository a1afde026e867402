"""The items of a response's output while they are written: thoughts, messages and calls, each with its events.

`opening` and `closing` tell of an item's begin and end, `add` of new text in it; an event is a name and its fields.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from server.api.answers.logprobs import ChatTokenLogprob
from server.api.answers.tool_parser import Part
from server.api.responses.answers import (
    FunctionCall,
    ItemStatus,
    OutputItem,
    OutputMessage,
    OutputText,
    ReasoningItem,
    ReasoningText,
)

Event = tuple[str, dict[str, Any]]
BYTES: Any = {"bytes": True, "top_logprobs": {"__all__": {"bytes"}}}
"""Fields of log-probabilities that OpenAI's deltas leave out; only the whole text has them."""


class OpenItem(ABC):
    """An item at its place in the output, with its text so far."""

    id_prefix: str

    def __init__(self, place: int) -> None:
        self.id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self.place = place
        self.text = ""

    @property
    def where(self) -> dict[str, Any]:
        """Fields with which events name this item."""
        return {"item_id": self.id, "output_index": self.place}

    @abstractmethod
    def as_item(self, status: ItemStatus) -> OutputItem:
        """The item with all of its text."""

    @abstractmethod
    def add(self, text: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        """Takes new text, and the log-probabilities of tokens in it."""

    def opening(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self.place, "item": self.as_item("in_progress")}

    def closing(self, status: ItemStatus) -> Iterator[Event]:
        yield "response.output_item.done", {"output_index": self.place, "item": self.as_item(status)}


class OpenMessage(OpenItem):
    id_prefix = "msg_"

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.logprobs: list[ChatTokenLogprob] = []
        self.where_text = {**self.where, "content_index": 0}
        self.is_begun = False

    @property
    def content(self) -> OutputText:
        return OutputText(text=self.text, logprobs=self.logprobs)

    def as_item(self, status: ItemStatus) -> OutputMessage:
        return OutputMessage(id=self.id, status=status, content=[self.content] if self.is_begun else [])

    def opening(self) -> Iterator[Event]:
        yield from super().opening()
        self.is_begun = True
        yield "response.content_part.added", {**self.where_text, "part": OutputText()}

    def add(self, text: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        self.text += text
        self.logprobs += logprobs
        yield "response.output_text.delta", {**self.where_text, "delta": text, "logprobs": bare(logprobs)}

    def closing(self, status: ItemStatus) -> Iterator[Event]:
        done = {"text": self.text, "logprobs": bare(self.logprobs)}
        yield "response.output_text.done", self.where_text | done
        yield "response.content_part.done", {**self.where_text, "part": self.content}
        yield from super().closing(status)


class OpenThoughts(OpenItem):
    id_prefix = "rs_"

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.where_text = {**self.where, "content_index": 0}

    def as_item(self, status: ItemStatus) -> ReasoningItem:
        return ReasoningItem(id=self.id, status=status, content=[ReasoningText(text=self.text)] if self.text else [])

    def opening(self) -> Iterator[Event]:
        yield from super().opening()
        yield "response.content_part.added", {**self.where_text, "part": ReasoningText(text="")}

    def add(self, text: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        self.text += text
        yield "response.reasoning_text.delta", {**self.where_text, "delta": text}

    def closing(self, status: ItemStatus) -> Iterator[Event]:
        yield "response.reasoning_text.done", {**self.where_text, "text": self.text}
        yield "response.content_part.done", {**self.where_text, "part": ReasoningText(text=self.text)}
        yield from super().closing(status)


class OpenCall(OpenItem):
    id_prefix = "fc_"

    def __init__(self, place: int, begin: Part) -> None:
        super().__init__(place)
        self.call_id, self.name = begin.id or "", begin.name or ""

    def as_item(self, status: ItemStatus) -> FunctionCall:
        return FunctionCall(id=self.id, call_id=self.call_id, name=self.name, arguments=self.text, status=status)

    def add(self, text: str, logprobs: list[ChatTokenLogprob]) -> Iterator[Event]:
        self.text += text
        yield "response.function_call_arguments.delta", {**self.where, "delta": text}

    def closing(self, status: ItemStatus) -> Iterator[Event]:
        yield "response.function_call_arguments.done", self.where | {"arguments": self.text}
        yield from super().closing(status)


def begun_by(part: Part, place: int) -> OpenItem:
    """The item that begins with this part."""
    if part.is_thought:
        return OpenThoughts(place)
    return OpenMessage(place) if part.call is None else OpenCall(place, part)


def bare(logprobs: list[ChatTokenLogprob]) -> list[dict[str, Any]]:
    return [entry.model_dump(exclude=BYTES) for entry in logprobs]
