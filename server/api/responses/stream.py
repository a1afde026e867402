"""Pieces of text -> a response object, or the events that build it up, item by item."""

import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

from pydantic_core import to_json

from server.api.answers.events import event, padded
from server.api.answers.logprobs import ChatTokenLogprob
from server.api.answers.parts import begins_item
from server.api.answers.tool_parser import Part
from server.api.answers.transcript import AnswerStart, Transcript
from server.api.errors import ApiError
from server.api.responses.answers import Failure, IncompleteDetails, OutputItem, ResponseAnswer, ResponseUsage
from server.api.responses.items import Event, OpenItem, begun_by
from server.api.schema.generation import StreamOptions
from server.engine import FinishReason
from server.generation import Piece


class ResponseTranscript(Transcript):
    """POST /v1/responses; `repeated` are the fields of the request that its answer repeats."""

    id_prefix = "resp_"

    def __init__(self, start: AnswerStart, repeated: dict[str, Any]) -> None:
        super().__init__(start)
        self.repeated = repeated
        self.reader = start.new_reader()
        self.numbers = itertools.count()
        self.output: list[OutputItem] = []
        self.item: OpenItem | None = None
        self.last: Part | None = None
        self.unplaced: list[ChatTokenLogprob] = []
        """Log-probabilities of tokens whose text is still held back."""
        self.events: list[Event] = []
        """Those of the last piece."""

    @property
    def end(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self.outcomes[0].finish_reason is FinishReason.LENGTH else "completed"

    def take(self, piece: Piece) -> None:
        super().take(piece)
        self.events = []
        parts = self.reader.read(piece)
        if piece.outcome and not (self.item or self.output or parts):
            parts = [Part("")]
        if (vocabulary := self.start.vocabulary) is not None:
            self.unplaced += [ChatTokenLogprob.of_answer(token.scores, vocabulary) for token in piece.tokens]
        for part in parts:
            self.place(part)
        if piece.outcome:
            self.close("incomplete" if self.reader.is_inside_call else self.end)

    def place(self, part: Part) -> None:
        """Adds a part to the item that it belongs to, which it may begin."""
        if self.item is None or begins_item(part, self.last):
            self.close("completed")
            self.item = begun_by(part, len(self.output))
            self.events += self.item.opening()
        self.last = part
        if part.text:
            self.events += self.item.add(part.text, self.unplaced)
        self.unplaced = []

    def close(self, status: Literal["completed", "incomplete"]) -> None:
        if self.item:
            self.events += self.item.closing(status)
            self.output.append(self.item.as_item(status))
            self.item = None

    def whole(self) -> ResponseAnswer:
        end, outcome = self.end, self.outcomes[0]
        thoughts = self.reader.num_thoughts(outcome)
        return self.begun_answer().model_copy(
            update={
                "status": end,
                "completed_at": int(time.time()) if end == "completed" else None,
                "incomplete_details": IncompleteDetails() if end == "incomplete" else None,
                "output": self.output,
                "usage": ResponseUsage.of(self.start.prompt_tokens, outcome, thoughts),
                "metrics": self.metrics,
            }
        )

    def begun_answer(self) -> ResponseAnswer:
        """The answer before its first token, as the first events of a stream show it."""
        return ResponseAnswer(id=self.id, created_at=self.start.created, model=self.start.model, **self.repeated)

    async def frames(self, pieces: AsyncIterator[Piece], options: StreamOptions) -> AsyncIterator[str]:
        """Usage and metrics come with the last event, which has the whole answer."""
        opening = self.opening()
        async for piece in pieces:
            for frame in opening:
                yield frame
            self.take(piece)
            for name, fields in self.events:
                is_padded = options.include_obfuscation and name.endswith(".delta")
                yield self.event(name, fields, is_padded=bool(is_padded))
        yield self.event(f"response.{self.end}", {"response": self.whole()})

    def opening(self) -> Iterator[str]:
        yield self.event("response.created", {"response": self.begun_answer()})
        yield self.event("response.in_progress", {"response": self.begun_answer()})

    def failure(self, error: ApiError) -> str:
        """Two events: `response.failed` for readers of events, then `error`, at which OpenAI's clients raise."""
        failed = self.begun_answer().model_copy(update={"status": "failed", "error": Failure(message=str(error))})
        detail = error.body.error
        told = {"code": detail.code, "message": detail.message, "param": detail.param, "error": detail}
        return self.event("response.failed", {"response": failed}) + self.event("error", told)

    def event(self, name: str, fields: dict[str, Any], is_padded: bool = False) -> str:
        data = to_json({"type": name, "sequence_number": next(self.numbers), **fields}).decode()
        return event(padded(data) if is_padded else data, name)
