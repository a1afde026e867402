"""The queue: one ticket for each unfinished request. It lives on the event loop, so it needs no lock.

A ticket counts towards the limits from before its prompt is tokenised until its last sequence has ended, whether or not
its client has read the answer by then. It is released once, when its reply has ended.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from server.generation import Piece

Event = Piece | Exception
Result = TypeVar("Result")


class FailureReason(StrEnum):
    """Why a request is refused, or ends without its whole answer; the values are labels of the metrics."""

    QUEUE_FULL = "queue_full"
    CLIENT_LIMIT = "client_limit"
    LOADING = "loading"
    DRAINING = "draining"
    DEAD = "dead"
    FAILED = "failed"
    TIMEOUT = "timeout"
    INTERNAL = "internal"


class QueueFullError(Exception):
    """The request does not fit beside the unfinished ones."""


class DeadlineError(Exception):
    """The request took longer than it may."""


@dataclass(frozen=True)
class QueueLimits:
    """Most sequences, and most tokens of prompts, that all unfinished requests may have together.

    Of one client's requests no more than half of each counts against the others', so that no client keeps all out.
    """

    max_sequences: int
    max_tokens: int


class Ticket:
    """A request's place among the unfinished ones, and the queue in which its pieces arrive.

    `expiry` is done once the request has taken too long; `on_expiry` is called then. `traceparent` is the trace that
    the client's call is part of, as the W3C's header of that name has it.
    """

    def __init__(
        self, num_sequences: int, num_tokens: int, timeout: float, client: str | None, on_expiry: Callable[[], None]
    ) -> None:
        self.num_sequences = self.num_unfinished = num_sequences
        self.num_tokens = num_tokens
        self.client = client
        self.traceparent: str | None = None
        self.on_expiry = on_expiry
        self.arrived_at = time.perf_counter()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self.expiry: asyncio.Future[None] = loop.create_future()
        self.timer = loop.call_later(timeout, self.expire)

    def receive(self, event: Event) -> None:
        self.events.put_nowait(event)
        if isinstance(event, Piece):
            self.num_unfinished -= event.outcome is not None

    def expire(self) -> None:
        """Ends the request; what its client has not taken by now goes, so that the error comes next."""
        while not self.events.empty():
            self.events.get_nowait()
        self.receive(DeadlineError())
        self.expiry.set_result(None)
        self.on_expiry()

    async def in_time(self, work: Awaitable[Result]) -> Result:
        """What the work gives; raises `DeadlineError` where the request's time is over before that."""
        doing = asyncio.ensure_future(work)
        both: set[asyncio.Future[Any]] = {doing, self.expiry}
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            doing.cancel()
            raise DeadlineError
        return doing.result()

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces of all sequences as they come, until each has its outcome; raises the error that ends them early."""
        num_open = self.num_sequences
        while num_open:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            num_open -= event.outcome is not None
            yield event


class Tickets:
    """All open tickets, within limits; `on_full` is called at every refusal, `on_expiry` at every deadline."""

    def __init__(self, limits: QueueLimits, on_full: Callable[[], None], on_expiry: Callable[[], None]) -> None:
        self.limits = limits
        self.on_full = on_full
        self.on_expiry = on_expiry
        self.open: set[Ticket] = set()

    @property
    def num_unfinished(self) -> int:
        """Sequences of all open tickets that run or wait."""
        return sum(ticket.num_unfinished for ticket in self.open)

    def take(self, num_sequences: int, num_tokens: int, timeout: float, client: str | None = None) -> Ticket:
        """A ticket for a request of about this size; raises `QueueFullError`."""
        self.check(self.open, num_sequences, num_tokens, client)
        ticket = Ticket(num_sequences, num_tokens, timeout, client, self.on_expiry)
        self.open.add(ticket)
        return ticket

    def resize(self, ticket: Ticket, num_tokens: int) -> None:
        """Counts the tokens of a prompt exactly, once they are known; raises `QueueFullError`."""
        self.check(self.open - {ticket}, ticket.num_sequences, num_tokens, ticket.client)
        ticket.num_tokens = num_tokens

    def check(self, others: set[Ticket], num_sequences: int, num_tokens: int, client: str | None) -> None:
        """Raises `QueueFullError` where a client's request does not fit beside the others.

        Alone, every request fits: waiting would not make it smaller.
        """
        running = [ticket for ticket in others if ticket.num_unfinished]
        sequences = counted(((t.client, t.num_unfinished) for t in running), client, self.limits.max_sequences)
        tokens = counted(((t.client, t.num_tokens) for t in running), client, self.limits.max_tokens)
        is_full = sequences + num_sequences > self.limits.max_sequences or tokens + num_tokens > self.limits.max_tokens
        if running and is_full:
            self.on_full()
            raise QueueFullError

    def close(self, ticket: Ticket) -> None:
        ticket.timer.cancel()
        self.open.discard(ticket)

    def fail(self, error: Exception) -> None:
        """Ends every open request with an error."""
        for ticket in self.open:
            ticket.receive(error)


def counted(sizes: Iterable[tuple[str | None, int]], client: str | None, limit: int) -> int:
    """What the open requests, by their client and size, count for one of `client`: of another's at most half the limit.

    With a limit of 136, one that waits for 1,024 answers leaves 68 places to the others.
    """
    totals: Counter[str | None] = Counter()
    for other, size in sizes:
        totals[other] += size
    return sum(total if other == client else min(total, -(-limit // 2)) for other, total in totals.items())
