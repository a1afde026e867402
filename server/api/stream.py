"""Pieces of text -> OpenAI's chunks as server-sent events, or folded into one answer.

Both kinds read the same iterator. `Reply` sends either for as long as the client is there.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Literal, cast

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.answers import (
    Answer,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    RequestMetrics,
    TextChoice,
    TextCompletion,
    Usage,
)
from server.api.errors import api_error
from server.generation import Outcome, Piece
from server.tickets import Ticket
from server.worker import Worker

DONE = "data: [DONE]\n\n"


class Transcript(ABC):
    """One answer in the making: its text so far, and how each of its choices ended."""

    id_prefix: ClassVar[str]
    prompt_field: ClassVar[str]

    def __init__(self, head: dict[str, Any], prompt_tokens: int, num_choices: int) -> None:
        self.head = head
        self.prompt_tokens = prompt_tokens
        self.texts = [""] * num_choices
        self.begun: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}

    @abstractmethod
    def chunks(self, piece: Piece) -> list[Answer]:
        """What a stream says about one piece."""

    @abstractmethod
    def empty_chunk(self) -> Answer: ...

    @abstractmethod
    def whole(self) -> Answer:
        """The answer without its usage and metrics."""

    def take(self, piece: Piece) -> None:
        self.texts[piece.index] += piece.text
        if piece.outcome:
            self.outcomes[piece.index] = piece.outcome

    def finish_reason(self, index: int) -> Literal["stop", "length"] | None:
        outcome = self.outcomes.get(index)
        return cast(Literal["stop", "length"], outcome.finish_reason.value) if outcome else None

    def seal(self, answer: Answer) -> Answer:
        """Adds what is known at the end only."""
        usage = Usage.of(self.prompt_tokens, list(self.outcomes.values()))
        metrics = RequestMetrics.of(self.outcomes[0]) if len(self.texts) == 1 else None
        return answer.model_copy(update={"usage": usage, "metrics": metrics})

    async def fold(self, pieces: AsyncIterator[Piece]) -> Answer:
        async for piece in pieces:
            self.take(piece)
        return self.seal(self.whole())

    async def frames(self, pieces: AsyncIterator[Piece], includes_usage: bool) -> AsyncIterator[str]:
        """Server-sent events; the last chunk carries the metrics, and the usage where it was asked for."""
        hidden = {"metrics"} if includes_usage else {"metrics", "usage"}
        async for piece in pieces:
            self.take(piece)
            *chunks, last = self.chunks(piece)
            for chunk in chunks:
                yield frame(chunk, hidden)
            is_end = len(self.outcomes) == len(self.texts) and not includes_usage
            yield frame(self.seal(last), {"usage"}) if is_end else frame(last, hidden)
        if includes_usage:
            yield frame(self.seal(self.empty_chunk()), set())
        yield DONE


class ChatTranscript(Transcript):
    """POST /v1/chat/completions"""

    id_prefix = "chatcmpl"
    prompt_field = "messages"

    def chunks(self, piece: Piece) -> list[Answer]:
        index = piece.index
        choices = []
        if index not in self.begun:
            self.begun.add(index)
            choices.append(ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        if piece.text:
            choices.append(ChunkChoice(index=index, delta=Delta(content=piece.text)))
        if piece.outcome:
            choices.append(ChunkChoice(index=index, delta=Delta(), finish_reason=self.finish_reason(index)))
        return [self.chunk([choice]) for choice in choices]

    def chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self.head, choices=choices)

    def empty_chunk(self) -> Answer:
        return self.chunk([])

    def whole(self) -> Answer:
        choices = [
            ChatChoice(index=i, message=AssistantMessage(content=text), finish_reason=self.finish_reason(i) or "stop")
            for i, text in enumerate(self.texts)
        ]
        return ChatCompletion(**self.head, choices=choices)


class TextTranscript(Transcript):
    """POST /v1/completions"""

    id_prefix = "cmpl"
    prompt_field = "prompt"

    def chunks(self, piece: Piece) -> list[Answer]:
        reason = self.finish_reason(piece.index)
        return [
            TextCompletion(**self.head, choices=[TextChoice(index=piece.index, text=piece.text, finish_reason=reason)])
        ]

    def empty_chunk(self) -> Answer:
        return TextCompletion(**self.head, choices=[])

    def whole(self) -> Answer:
        choices = [
            TextChoice(index=i, text=text, finish_reason=self.finish_reason(i)) for i, text in enumerate(self.texts)
        ]
        return TextCompletion(**self.head, choices=choices)


def frame(answer: Answer, hidden: set[str]) -> str:
    return f"data: {answer.model_dump_json(exclude=hidden)}\n\n"


async def after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    """All frames; an error after the first, when the status was sent, becomes an event that ends the stream."""
    yield first
    try:
        async for text in rest:
            yield text
    except Exception as error:
        yield f"data: {api_error(error).body.model_dump_json()}\n\n"


class Reply(Response):
    """Answers from a ticket for as long as the client is there, and releases it whatever happens."""

    def __init__(
        self, worker: Worker, ticket: Ticket, transcript: Transcript, is_streamed: bool, includes_usage: bool
    ) -> None:
        super().__init__()
        self.worker = worker
        self.ticket = ticket
        self.transcript = transcript
        self.is_streamed = is_streamed
        self.includes_usage = includes_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self.send_all(scope, receive, send))
        leaving = asyncio.ensure_future(disconnection(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            self.worker.release(self.ticket)
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = self.worker.pieces(self.ticket)
        if not self.is_streamed:
            answer = await self.transcript.fold(pieces)
            await Response(answer.model_dump_json(), media_type="application/json")(scope, receive, send)
            return
        frames = self.transcript.frames(pieces, self.includes_usage)
        # Until there is something to say, an error still gets its own status.
        first = await anext(frames)
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        response = StreamingResponse(after(first, frames), headers=headers, media_type="text/event-stream")
        await response.stream_response(send)


async def disconnection(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
