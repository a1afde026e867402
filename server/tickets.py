"""The queue: one ticket for each unfinished request. It lives on the event loop, so it needs no lock.

A ticket counts towards the limits from before its prompt is tokenised until its reply has ended, so that
everything is counted once and released once.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from server.generation import Piece

Event = Piece | Exception


class FailureReason(StrEnum):
    """Why a request is refused, or ends without its whole answer; the values are labels of the metrics."""

    QUEUE_FULL = "queue_full"
    LOADING = "loading"
    DRAINING = "draining"
    DEAD = "dead"
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
    """A request's place among the unfinished ones, and the queue in which its pieces arrive."""

    def __init__(self, num_sequences: int, num_tokens: int, timeout: float, client: str | None) -> None:
        self.num_sequences = num_sequences
        self.num_tokens = num_tokens
        self.client = client
        self.arrived_at = time.perf_counter()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.timer = asyncio.get_running_loop().call_later(timeout, self.receive, DeadlineError())

    def receive(self, event: Event) -> None:
        self.events.put_nowait(event)

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
    """All open tickets, within limits; `on_full` is called at every refusal."""

    def __init__(self, limits: QueueLimits, on_full: Callable[[], None]) -> None:
        self.limits = limits
        self.on_full = on_full
        self.open: set[Ticket] = set()

    def take(self, num_sequences: int, num_tokens: int, timeout: float, client: str | None = None) -> Ticket:
        """A ticket for a request of about this size; raises `QueueFullError`."""
        self.check(self.open, num_sequences, num_tokens, client)
        ticket = Ticket(num_sequences, num_tokens, timeout, client)
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
        sequences = counted(((t.client, t.num_sequences) for t in others), client, self.limits.max_sequences)
        tokens = counted(((t.client, t.num_tokens) for t in others), client, self.limits.max_tokens)
        is_full = sequences + num_sequences > self.limits.max_sequences or tokens + num_tokens > self.limits.max_tokens
        if others and is_full:
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
