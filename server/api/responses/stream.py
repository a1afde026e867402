"""Pieces of text -> a response object, or the events that build it up; its output is one message with one text."""

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

from pydantic_core import to_json

from server.api.answers.logprobs import ChatTokenLogprob
from server.api.answers.transcript import AnswerStart, Transcript
from server.api.errors import ApiError
from server.api.responses.answers import (
    Failure,
    IncompleteDetails,
    OutputMessage,
    OutputText,
    ResponseAnswer,
    ResponseUsage,
)
from server.engine import FinishReason
from server.generation import Piece, ShownToken

BYTES: Any = {"bytes": True, "top_logprobs": {"__all__": {"bytes"}}}
"""Fields of log-probabilities that OpenAI's deltas leave out; only the whole text has them."""


class ResponseTranscript(Transcript):
    """POST /v1/responses; `repeated` are the fields of the request that its answer repeats."""

    id_prefix = "resp_"

    def __init__(self, start: AnswerStart, repeated: dict[str, Any]) -> None:
        super().__init__(start)
        self.repeated = repeated
        self.message_id = f"msg_{uuid.uuid4().hex}"
        self.numbers = itertools.count()

    @property
    def end(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if self.outcomes[0].finish_reason is FinishReason.LENGTH else "completed"

    def whole(self) -> ResponseAnswer:
        end = self.end
        return self.begun_answer().model_copy(
            update={
                "status": end,
                "completed_at": int(time.time()) if end == "completed" else None,
                "incomplete_details": IncompleteDetails() if end == "incomplete" else None,
                "output": [self.message(end, [self.text()])],
                "usage": ResponseUsage.of(self.start.prompt_tokens, self.outcomes[0]),
                "metrics": self.metrics,
            }
        )

    def begun_answer(self) -> ResponseAnswer:
        """The answer before its first token, as the first events of a stream show it."""
        return ResponseAnswer(id=self.id, created_at=self.start.created, model=self.start.model, **self.repeated)

    def message(
        self, status: Literal["in_progress", "completed", "incomplete"], content: list[OutputText]
    ) -> OutputMessage:
        return OutputMessage(id=self.message_id, status=status, content=content)

    def text(self) -> OutputText:
        return OutputText(text=self.texts[0], logprobs=self.logprobs(self.tokens[0]))

    def logprobs(self, tokens: Sequence[ShownToken]) -> list[ChatTokenLogprob]:
        vocabulary = self.start.vocabulary
        if vocabulary is None:
            return []
        return [ChatTokenLogprob.of_answer(token.scores, vocabulary) for token in tokens]

    async def frames(self, pieces: AsyncIterator[Piece], includes_usage: bool) -> AsyncIterator[str]:
        """Usage and metrics come with the last event, which has the whole answer."""
        opening = self.opening()
        async for piece in pieces:
            for frame in opening:
                yield frame
            self.take(piece)
            if piece.text or piece.tokens:
                yield self.content_event(
                    "response.output_text.delta", delta=piece.text, logprobs=self.bare_logprobs(piece.tokens)
                )
        for frame in self.closing():
            yield frame

    def opening(self) -> Iterator[str]:
        yield self.event("response.created", response=self.begun_answer())
        yield self.event("response.in_progress", response=self.begun_answer())
        yield self.event("response.output_item.added", output_index=0, item=self.message("in_progress", []))
        yield self.content_event("response.content_part.added", part=OutputText())

    def closing(self) -> Iterator[str]:
        text, end = self.text(), self.end
        yield self.content_event(
            "response.output_text.done", text=text.text, logprobs=self.bare_logprobs(self.tokens[0])
        )
        yield self.content_event("response.content_part.done", part=text)
        yield self.event("response.output_item.done", output_index=0, item=self.message(end, [text]))
        yield self.event(f"response.{end}", response=self.whole())

    def failure(self, error: ApiError) -> str:
        """Two events: `response.failed` for readers of events, then `error`, at which OpenAI's clients raise."""
        failed = self.begun_answer().model_copy(update={"status": "failed", "error": Failure(message=str(error))})
        detail = error.body.error
        return self.event("response.failed", response=failed) + self.event(
            "error", code=detail.code, message=detail.message, param=detail.param, error=detail
        )

    def bare_logprobs(self, tokens: Sequence[ShownToken]) -> list[dict[str, Any]]:
        return [entry.model_dump(exclude=BYTES) for entry in self.logprobs(tokens)]

    def content_event(self, name: str, **fields: Any) -> str:
        return self.event(name, item_id=self.message_id, output_index=0, content_index=0, **fields)

    def event(self, name: str, **fields: Any) -> str:
        data = {"type": name, "sequence_number": next(self.numbers), **fields}
        return f"event: {name}\ndata: {to_json(data).decode()}\n\n"
