"""The queue: one ticket for each unfinished request. It lives on the event loop, so it needs no lock.

A ticket counts towards the limits from before its prompt is tokenised until its reply has ended, so that
everything is counted once and released once.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
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
    """Most sequences, and most tokens of prompts, that all unfinished requests may have together."""

    max_sequences: int
    max_tokens: int


class Ticket:
    """A request's place among the unfinished ones, and the queue in which its pieces arrive."""

    def __init__(self, timeout: float) -> None:
        self.num_sequences = 0
        self.num_tokens = 0
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

    def take(self, num_sequences: int, num_tokens: int, timeout: float) -> Ticket:
        """A ticket for a request of about this size; raises `QueueFullError`."""
        self.check(set(), num_sequences, num_tokens)
        ticket = Ticket(timeout)
        ticket.num_sequences, ticket.num_tokens = num_sequences, num_tokens
        self.open.add(ticket)
        return ticket

    def resize(self, ticket: Ticket, num_tokens: int) -> None:
        """Counts the tokens of a prompt exactly, once they are known; raises `QueueFullError`."""
        self.check({ticket}, ticket.num_sequences, num_tokens)
        ticket.num_tokens = num_tokens

    def check(self, without: set[Ticket], num_sequences: int, num_tokens: int) -> None:
        """Raises `QueueFullError` where a request does not fit beside the others.

        Alone, every request fits: waiting would not make it smaller.
        """
        others = self.open - without
        sequences = num_sequences + sum(ticket.num_sequences for ticket in others)
        tokens = num_tokens + sum(ticket.num_tokens for ticket in others)
        if others and (sequences > self.limits.max_sequences or tokens > self.limits.max_tokens):
            self.on_full()
            raise QueueFullError

    def close(self, ticket: Ticket) -> None:
        ticket.timer.cancel()
        self.open.discard(ticket)

    def fail(self, error: Exception) -> None:
        """Ends every open request with an error."""
        for ticket in self.open:
            ticket.receive(error)
