"""One thread owns the engine; the event loop hands it prompts and gets pieces of text back.

Event loop:  `reserve` a ticket -> `Ticket.submit` prompts -> read `Ticket.pieces` -> `Ticket.close`.
Thread:      commands from the inbox, one engine step, delivery to the tickets; asleep while idle.
What is counted against the limits is a ticket's life, so that it is released once, on the loop.
The thread's death reaches every open ticket, and later ones are refused.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from server.deployment import Deployment
from server.engine import Emission, FinishReason
from server.generation import Generation, Piece, Prompt
from server.metrics import Metrics

logger = logging.getLogger(__name__)

Event = Piece | Exception


class QueueFullError(Exception):
    """The request does not fit beside the unfinished ones."""


class UnavailableError(Exception):
    """The worker takes no requests; `reason` is loading, draining or dead."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DeadlineError(Exception):
    """The request's time is over."""


@dataclass(frozen=True)
class QueueLimits:
    """What all unfinished requests together may hold: sequences, and tokens of their prompts."""

    max_sequences: int
    max_tokens: int


class Ticket:
    """A request's place among the unfinished ones, and where its pieces arrive. Lives on the event loop."""

    def __init__(self, worker: "Worker", num_sequences: int, num_tokens: int, timeout: float) -> None:
        self.worker = worker
        self.num_sequences = num_sequences
        self.num_tokens = num_tokens
        self.num_open = 0
        self.arrived_at = time.perf_counter()
        self.events: asyncio.Queue[Event] = asyncio.Queue()
        self.timer = asyncio.get_running_loop().call_later(timeout, self.receive, DeadlineError())

    def submit(self, prompts: list[Prompt]) -> None:
        """Hands over one prompt for each choice; now their tokens are counted exactly."""
        self.worker.check_available()
        self.worker.check_fits(self, len(prompts), sum(len(prompt.request.prompt_ids) for prompt in prompts))
        self.num_open = len(prompts)
        self.worker.inbox.put(partial(self.worker.add, self, prompts))

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces of all choices as they come, until each has its outcome; raises what ended the request early."""
        while self.num_open:
            event = await self.events.get()
            if isinstance(event, Exception):
                raise event
            self.num_open -= event.outcome is not None
            yield event

    def receive(self, event: Event) -> None:
        self.events.put_nowait(event)

    def close(self) -> None:
        """Gives the place back and cancels what still runs; closing twice does nothing."""
        if self in self.worker.tickets:
            self.worker.tickets.remove(self)
            self.timer.cancel()
            self.worker.inbox.put(partial(self.worker.cancel, self))


class Worker:
    """Loads the deployment in its thread, then serves it there."""

    def __init__(self, load: Callable[[], Deployment], limits: QueueLimits, metrics: Metrics) -> None:
        self.load = load
        self.limits = limits
        self.metrics = metrics
        self.deployment: Deployment | None = None
        self.failure: BaseException | None = None
        self.is_draining = False
        self.tickets: set[Ticket] = set()
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.generations: dict[int, tuple[Ticket, Generation]] = {}
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.loop: asyncio.AbstractEventLoop

    # On the event loop.

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; open tickets get an error."""
        self.abort()
        self.inbox.put(None)
        await asyncio.to_thread(self.thread.join, 10)

    @property
    def is_alive(self) -> bool:
        return self.failure is None and self.thread.is_alive()

    @property
    def unavailable(self) -> str | None:
        """Why no request is taken, None where they are."""
        if not self.is_alive:
            return "dead"
        if self.is_draining:
            return "draining"
        return "loading" if self.deployment is None else None

    def check_available(self) -> Deployment:
        """The deployment, where requests are taken; raises `UnavailableError` otherwise."""
        reason = self.unavailable
        if reason is not None or self.deployment is None:
            self.metrics.rejections.labels(reason).inc()
            raise UnavailableError(str(reason))
        return self.deployment

    def reserve(self, num_sequences: int, num_tokens: int, timeout: float) -> Ticket:
        """A place for a request of roughly `num_tokens` prompt tokens, taken before the work of tokenising them."""
        self.check_available()
        ticket = Ticket(self, 0, 0, timeout)
        try:
            self.check_fits(ticket, num_sequences, num_tokens)
        except QueueFullError:
            ticket.timer.cancel()
            raise
        self.tickets.add(ticket)
        return ticket

    def check_fits(self, ticket: Ticket, num_sequences: int, num_tokens: int) -> None:
        """Sets a ticket's size; raises `QueueFullError` where it does not fit. Alone, every request fits."""
        others = self.tickets - {ticket}
        sequences = num_sequences + sum(other.num_sequences for other in others)
        tokens = num_tokens + sum(other.num_tokens for other in others)
        if others and (sequences > self.limits.max_sequences or tokens > self.limits.max_tokens):
            self.metrics.rejections.labels("queue_full").inc()
            raise QueueFullError
        ticket.num_sequences, ticket.num_tokens = num_sequences, num_tokens

    def drain(self) -> None:
        """From now on only finishes what was accepted."""
        self.is_draining = True

    def abort(self) -> None:
        """Ends every open ticket with an error."""
        self.is_draining = True
        self.fail(UnavailableError("draining"))

    def fail(self, error: Exception) -> None:
        for ticket in self.tickets:
            ticket.receive(error)

    # In the thread.

    def run(self) -> None:
        try:
            self.deployment = self.load()
            self.metrics.watch(self.deployment)
            while self.turn(self.deployment):
                pass
        except BaseException as error:
            self.failure = error
            if self.deployment is not None:
                logger.critical("the engine stopped; no further request is served", exc_info=error)
            self.post(partial(self.fail, UnavailableError("dead")))

    def turn(self, deployment: Deployment) -> bool:
        """Takes all commands, waiting for one while there is nothing to do; then runs one engine step."""
        engine = deployment.engine
        while not engine.has_work or not self.inbox.empty():
            command = self.inbox.get()
            if command is None:
                return False
            command()
        emissions, stats = engine.step()
        self.metrics.observe_step(stats)
        now = time.perf_counter()
        self.post(partial(deliver, [self.advance(emission, now) for emission in emissions]))
        return True

    def add(self, ticket: Ticket, prompts: list[Prompt]) -> None:
        assert self.deployment is not None
        try:
            for index, prompt in enumerate(prompts):
                sequence = self.deployment.engine.add(prompt.request)
                text = self.deployment.codec.stream(prompt.stop)
                self.generations[sequence.id] = ticket, Generation(index, sequence, text)
        except ValueError as error:
            self.cancel(ticket)
            self.post(partial(ticket.receive, error))

    def cancel(self, ticket: Ticket) -> None:
        for number, (owner, generation) in list(self.generations.items()):
            if owner is ticket:
                self.end(number, generation)
                self.metrics.observe_cancelled()

    def end(self, number: int, generation: Generation) -> None:
        assert self.deployment is not None
        self.deployment.engine.cancel(generation.sequence)
        del self.generations[number]

    def advance(self, emission: Emission, now: float) -> tuple[Ticket, Piece]:
        ticket, generation = self.generations[emission.sequence.id]
        if generation.first_token_at is None:
            self.metrics.observe_first_token(now - ticket.arrived_at)
        else:
            self.metrics.observe_further_tokens(len(emission.token_ids), now - generation.last_token_at)
        piece = generation.advance(emission, now)
        if piece.outcome:
            self.end(emission.sequence.id, generation)
            self.metrics.observe_outcome(piece.outcome, now - ticket.arrived_at)
        return ticket, piece

    def post(self, callback: Callable[[], None]) -> None:
        # A closed loop has no readers left to tell.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)


def deliver(pieces: Iterable[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        if piece.text or piece.outcome:
            ticket.receive(piece)
