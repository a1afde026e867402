"""Sends an answer for as long as the client is there: whole, or as a stream whose errors are events."""

import asyncio
from collections.abc import AsyncIterator

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server.api.answers.transcript import Transcript
from server.api.errors import api_error
from server.api.http.connection import ABORT
from server.api.prepare.lanes import Lane, Lanes
from server.api.schema.generation import StreamOptions
from server.tickets import Ticket
from server.worker import Worker

GRACE = 1.0
"""Seconds that a client has to take the news that its request took too long."""


class Reply(Response):
    """A response made of a ticket's pieces; it ends when the client leaves, and always releases the ticket.

    At the deadline its engine is free at once; a client that does not even read the error loses the connection.
    """

    def __init__(
        self,
        worker: Worker,
        ticket: Ticket,
        transcript: Transcript,
        lanes: Lanes,
        is_streamed: bool,
        options: StreamOptions,
    ) -> None:
        super().__init__()
        self.worker = worker
        self.ticket = ticket
        self.transcript = transcript
        self.lanes = lanes
        self.is_streamed = is_streamed
        self.options = options

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self.send_all(scope, receive, send))
        leaving = asyncio.ensure_future(disconnection(receive))
        try:
            await asyncio.wait({sending, leaving, self.ticket.expiry}, return_when=asyncio.FIRST_COMPLETED)
            if self.ticket.expiry.done():
                self.worker.release(self.ticket)
                await asyncio.wait({sending, leaving}, timeout=GRACE, return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() and not leaving.done():
                cut(scope)
            elif sending.done():
                sending.result()
        finally:
            self.worker.release(self.ticket)
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        pieces = self.worker.pieces(self.ticket)
        if not self.is_streamed:
            await self.transcript.fold(pieces)
            content = await self.lanes.run(Lane.ANSWERS, self.transcript.whole_json)
            await Response(content, media_type="application/json")(scope, receive, send)
            return
        frames = self.transcript.frames(pieces, self.options)
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


def cut(scope: Scope) -> None:
    """Closes the connection, sent or unsent; without its hook (see `connection.py`) the server closes it later."""
    abort = scope.get("state", {}).get(ABORT)
    if abort is not None:
        abort()


async def disconnection(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
