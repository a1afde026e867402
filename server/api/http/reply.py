"""Sends an answer for as long as the client is there: whole, or as a stream whose errors are events."""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.answers.transcript import Transcript
from server.api.errors import api_error
from server.tickets import Ticket
from server.worker import Worker


class Reply(Response):
    """A response made of a ticket's pieces; it ends when the client leaves, and always releases the ticket."""

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
        response = StreamingResponse(self.after(first, frames), headers=headers, media_type="text/event-stream")
        await response.stream_response(send)

    async def after(self, first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
        """All frames; an error after the first, when the status was sent, becomes an event that ends the stream."""
        yield first
        try:
            async for text in rest:
                yield text
        except Exception as error:
            yield self.transcript.failure(api_error(error))


async def disconnection(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
