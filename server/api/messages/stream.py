"""Pieces of text -> Anthropic's message, or the events that build it up, block by block."""

from collections.abc import AsyncIterator
from typing import Any

from pydantic_core import to_json

from server.api.answers.events import event, padded
from server.api.answers.parts import begins_item
from server.api.answers.tool_parser import Part, whole_object
from server.api.answers.transcript import AnswerStart, Transcript
from server.api.errors import ApiError
from server.api.messages.answers import (
    AnswerBlock,
    MessageAnswer,
    MessageUsage,
    StopReason,
    TextAnswer,
    ThinkingAnswer,
    ToolUseAnswer,
)
from server.api.messages.errors import anthropic_error
from server.api.schema.generation import StreamOptions
from server.engine import FinishReason
from server.generation import Piece

Event = tuple[str, dict[str, Any]]


class MessagesTranscript(Transcript):
    """POST /v1/messages"""

    id_prefix = "msg_"

    def __init__(self, start: AnswerStart) -> None:
        super().__init__(start)
        self.reader = start.new_reader()
        self.content: list[AnswerBlock] = []
        self.last: Part | None = None
        self.text = ""
        """That of the last block."""
        self.events: list[Event] = []
        """Those of the last piece."""

    def take(self, piece: Piece) -> None:
        super().take(piece)
        self.events = []
        for part in self.reader.read(piece):
            if begins_item(part, self.last):
                self.close()
                self.content.append(block_of(part, ""))
                self.tell("content_block_start", content_block=self.content[-1])
            self.text += part.text
            self.last = part
            if part.text:
                self.tell("content_block_delta", delta=delta_of(part))
        if piece.outcome:
            self.close()

    def close(self) -> None:
        """Ends the last block, if there is one."""
        if self.last is not None:
            self.content[-1] = finished(self.content[-1], self.text)
            self.tell("content_block_stop")
        self.last, self.text = None, ""

    def tell(self, name: str, **fields: Any) -> None:
        self.events.append((name, {"index": len(self.content) - 1, **fields}))

    @property
    def stop_reason(self) -> StopReason:
        outcome = self.outcomes[0]
        if outcome.finish_reason is FinishReason.LENGTH:
            return "max_tokens"
        if outcome.stop is not None:
            return "stop_sequence"
        return "tool_use" if any(block.type == "tool_use" for block in self.content) else "end_turn"

    @property
    def usage(self) -> MessageUsage:
        return MessageUsage.of(self.start.prompt_tokens, self.outcomes[0])

    def begun_answer(self) -> MessageAnswer:
        """The answer before its first token."""
        usage = MessageUsage(input_tokens=self.start.prompt_tokens, output_tokens=0)
        return MessageAnswer(id=self.id, model=self.start.model, usage=usage)

    def whole(self) -> MessageAnswer:
        ended = {"stop_reason": self.stop_reason, "stop_sequence": self.outcomes[0].stop, "usage": self.usage}
        return self.begun_answer().model_copy(update={"content": self.content, "metrics": self.metrics, **ended})

    async def frames(self, pieces: AsyncIterator[Piece], options: StreamOptions) -> AsyncIterator[str]:
        """The exact usage comes near the end, with the reason of it."""
        is_begun = False
        async for piece in pieces:
            if not is_begun:
                is_begun = True
                yield typed_event("message_start", {"message": self.begun_answer().model_dump(exclude={"metrics"})})
            self.take(piece)
            for name, fields in self.events:
                yield typed_event(name, fields, is_padded=bool(options.include_obfuscation and "delta" in fields))
        ended = {"stop_reason": self.stop_reason, "stop_sequence": self.outcomes[0].stop}
        yield typed_event("message_delta", {"delta": ended, "usage": self.usage})
        yield typed_event("message_stop", {"metrics": self.metrics})

    def failure(self, error: ApiError) -> str:
        return typed_event("error", anthropic_error(error.status, str(error)))


def block_of(part: Part, text: str) -> AnswerBlock:
    if part.is_thought:
        return ThinkingAnswer(thinking=text)
    return TextAnswer(text=text) if part.call is None else ToolUseAnswer(id=part.id or "", name=part.name or "")


def finished(block: AnswerBlock, text: str) -> AnswerBlock:
    """The block with its text; a call that was cut short has no input."""
    if block.type == "tool_use":
        found = whole_object(text)
        return block.model_copy(update={"input": found[0] if found else {}})
    return block.model_copy(update={block.type: text})


def delta_of(part: Part) -> dict[str, str]:
    if part.is_thought:
        return {"type": "thinking_delta", "thinking": part.text}
    if part.call is None:
        return {"type": "text_delta", "text": part.text}
    return {"type": "input_json_delta", "partial_json": part.text}


def typed_event(name: str, fields: dict[str, Any], is_padded: bool = False) -> str:
    data = to_json({**fields, "type": name}).decode()
    return event(padded(data) if is_padded else data, name)
