"""One thread owns the engine; the event loop hands it prompts and gets pieces of text back.

Event loop:  `reserve` a ticket -> `submit` prompts -> read `Ticket.pieces` -> `release` the ticket.
Thread:      commands from the inbox, one engine step, delivery to the tickets; asleep while idle.
The thread's death reaches every open ticket, and later requests are refused.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from server.engine import Emission, FinishReason, StepStats
from server.generation import Generation, Outcome, Piece, Prompt
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import DeadlineError, FailureReason, QueueLimits, Ticket, Tickets

logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The worker takes no requests: it is still loading, it is draining, or its thread is dead."""

    def __init__(self, reason: FailureReason) -> None:
        super().__init__(reason)
        self.reason = reason


Observer = Callable[[Outcome, float], None]
"""Called with the outcome of a generation, and the seconds since its request arrived."""


class Worker:
    """Loads the model in its thread, then serves it there; `trace` is called for every generation, cancelled or not."""

    def __init__(
        self,
        load: Callable[[], ServedModel],
        limits: QueueLimits,
        metrics: Metrics,
        trace: Observer | None = None,
    ) -> None:
        self.load = load
        self.metrics = metrics
        self.trace: Observer = trace or (lambda outcome, latency: None)
        self.metrics.worker_up.set_function(lambda: self.is_alive)
        self.tickets = Tickets(limits, partial(metrics.observe_rejection, FailureReason.QUEUE_FULL))
        self.served: ServedModel | None = None
        self.failure: BaseException | None = None
        self.is_draining = False
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.generations: dict[int, tuple[Ticket, Generation]] = {}
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.loop: asyncio.AbstractEventLoop

    # On the event loop.

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; open requests get an error."""
        self.abort()
        self.inbox.put(None)
        await asyncio.to_thread(self.thread.join, 10)

    @property
    def is_alive(self) -> bool:
        return self.failure is None and self.thread.is_alive()

    @property
    def unavailable(self) -> FailureReason | None:
        """The reason why no request is taken; None while requests are taken."""
        if not self.is_alive:
            return FailureReason.DEAD
        if self.is_draining:
            return FailureReason.DRAINING
        return FailureReason.LOADING if self.served is None else None

    def check_available(self) -> ServedModel:
        """The model to serve a request with; raises `UnavailableError`, and counts it, where no request is taken."""
        reason = self.unavailable
        if reason is not None:
            self.metrics.observe_rejection(reason)
            raise UnavailableError(reason)
        assert self.served is not None
        return self.served

    def reserve(self, num_sequences: int, num_tokens: int, timeout: float, client: str | None = None) -> Ticket:
        """A place for about `num_tokens` prompt tokens, before they are tokenised; raises `QueueFullError`."""
        self.check_available()
        return self.tickets.take(num_sequences, num_tokens, timeout, client)

    def submit(self, ticket: Ticket, prompts: list[Prompt]) -> None:
        """Hands over one prompt for each sequence of the ticket."""
        self.check_available()
        self.tickets.resize(ticket, sum(len(prompt.request.prompt_ids) for prompt in prompts))
        self.inbox.put(partial(self.add, ticket, prompts))

    async def pieces(self, ticket: Ticket) -> AsyncIterator[Piece]:
        """The ticket's pieces; counts an error where time, a shutdown or a dead engine ends them early."""
        try:
            async for piece in ticket.pieces():
                yield piece
        except DeadlineError:
            self.metrics.observe_error(FailureReason.TIMEOUT)
            raise
        except UnavailableError as error:
            self.metrics.observe_error(error.reason)
            raise

    def release(self, ticket: Ticket) -> None:
        """Gives the place back and cancels what still runs; releasing twice does nothing."""
        self.tickets.close(ticket)
        self.inbox.put(partial(self.cancel, ticket))

    def drain(self) -> None:
        """Refuses new requests from now on, and finishes those that were accepted."""
        self.is_draining = True

    def abort(self) -> None:
        """Ends every open request with an error."""
        self.drain()
        self.tickets.fail(UnavailableError(FailureReason.DRAINING))

    # In the thread.

    def run(self) -> None:
        """The thread's life: load, then turn after turn until it is stopped; an error ends every open request."""
        try:
            self.served = self.load()
            self.metrics.watch(self.served)
            with self.served.engine.at_work():
                while self.turn(self.served):
                    pass
        except BaseException as error:
            self.failure = error
            if self.served is not None:
                logger.critical("the engine stopped; no further request is served", exc_info=error)
            self.post(partial(self.tickets.fail, UnavailableError(FailureReason.DEAD)))

    def turn(self, served: ServedModel) -> bool:
        """Takes all commands, waiting for one while there is nothing to do; then runs one engine step."""
        engine = served.engine
        while not engine.has_work or not self.inbox.empty():
            command = self.inbox.get()
            if command is None:
                return False
            command()
        emissions, stats = engine.step()
        self.metrics.observe_step(stats)
        now = time.perf_counter()
        self.post(partial(deliver, [self.advance(emission, stats, now) for emission in emissions]))
        return True

    def add(self, ticket: Ticket, prompts: list[Prompt]) -> None:
        assert self.served is not None
        try:
            for index, prompt in enumerate(prompts):
                sequence = self.served.engine.add(prompt.request)
                text = self.served.codec.stream(prompt.stop, prompt.request.stop.min_tokens)
                echo = self.served.codec.stream() if prompt.is_echoed else None
                self.generations[sequence.id] = ticket, Generation(index, sequence, text, echo, prompt.operation)
        except ValueError as error:
            self.cancel(ticket)
            self.post(partial(ticket.receive, error))

    def cancel(self, ticket: Ticket) -> None:
        for owner, generation in list(self.generations.values()):
            if owner is ticket:
                self.end(generation)
                self.metrics.observe_cancelled()
                self.trace(generation.outcome(FinishReason.CANCELLED), time.perf_counter() - ticket.arrived_at)

    def end(self, generation: Generation) -> None:
        assert self.served is not None
        self.served.engine.cancel(generation.sequence)
        del self.generations[generation.sequence.id]

    def advance(self, emission: Emission, stats: StepStats, now: float) -> tuple[Ticket, Piece]:
        ticket, generation = self.generations[emission.sequence.id]
        generation.spend(stats)
        if generation.first_token_at is not None:
            self.metrics.observe_further_tokens(len(emission.token_ids), now - generation.last_token_at)
        elif emission.token_ids:
            self.metrics.observe_first_token(now - ticket.arrived_at)
        piece = generation.advance(emission, now)
        if piece.outcome:
            self.end(generation)
            self.metrics.observe_outcome(piece.outcome, now - ticket.arrived_at)
            self.trace(piece.outcome, now - ticket.arrived_at)
        return ticket, piece

    def post(self, callback: Callable[[], None]) -> None:
        # A closed loop has no readers left to tell.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)


def deliver(pieces: list[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        if piece.text or piece.tokens or piece.outcome:
            ticket.receive(piece)
