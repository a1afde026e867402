"""One thread owns the engine; the event loop hands it prompts and gets pieces of text back.

Event loop:  `reserve` a ticket -> `submit` prompts -> read `Ticket.pieces` -> `release` the ticket.
Thread:      commands from the inbox, one engine step, delivery to the tickets; asleep while idle.

What one request causes ends that request alone. An engine that fails in a step is in no known state: every open ticket
gets an error, and the thread loads the model anew. A step that hangs cannot be ended from outside: the worker gives up,
and the process is to leave.
"""

import asyncio
import contextlib
import gc
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from server.engine import Emission, FinishReason, StepStats
from server.generation import Generation, Outcome, Piece, Prompt
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import FailureReason, QueueLimits, Ticket, Tickets

logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The worker takes no requests: it is loading, it is draining, its engine failed, or its thread is dead."""

    def __init__(self, reason: FailureReason) -> None:
        super().__init__(reason)
        self.reason = reason


class StuckError(Exception):
    """A step of the engine does not end."""


Observer = Callable[[Outcome, float, str | None], None]
"""Called with the outcome of a generation, the seconds since its request arrived, and the caller's `traceparent`."""


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
        self.trace: Observer = trace or (lambda outcome, latency, caller: None)
        self.metrics.worker_up.set_function(lambda: self.is_alive)
        on_full = partial(metrics.observe_rejection, FailureReason.QUEUE_FULL)
        self.tickets = Tickets(limits, on_full, partial(metrics.observe_error, FailureReason.TIMEOUT))
        self.served: ServedModel | None = None
        self.has_served = False
        self.failure: BaseException | None = None
        self.is_draining = False
        self.step_began_at: float | None = None
        self.inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self.generations: dict[int, tuple[Ticket, Generation]] = {}
        self.thread = threading.Thread(target=self.run, name="engine", daemon=True)
        self.loop: asyncio.AbstractEventLoop

    # On the event loop.

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """Ends the thread after its current step; open requests get an error.

        A thread that loads its model cannot be told to stop before that, and is left alone where it takes long.
        """
        self.abort()
        self.inbox.put(None)
        if self.failure is None:
            await asyncio.to_thread(self.thread.join, 10 if self.has_served else 1)

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
        """The ticket's pieces; counts an error where a shutdown or the engine's end ends them early."""
        try:
            async for piece in ticket.pieces():
                yield piece
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

    def check_progress(self, limit: float) -> None:
        """Gives up where the current step has taken more than `limit` seconds."""
        began = self.step_began_at
        if began is not None and self.failure is None and time.monotonic() - began > limit:
            self.give_up(StuckError(f"a step of the engine took more than {limit:g} seconds"))

    def give_up(self, error: BaseException) -> None:
        """No request is served from now on."""
        if self.has_served:
            logger.critical("the engine stopped; no further request is served", exc_info=error)
        self.failure = error
        self.post(partial(self.tickets.fail, UnavailableError(FailureReason.DEAD)))

    # In the thread.

    def run(self) -> None:
        """The thread's life: it loads and serves until it is stopped, and loads anew after a step that failed."""
        try:
            while not self.serve(self.load()):
                gc.unfreeze()
                gc.collect()
        except BaseException as error:
            self.give_up(error)

    def serve(self, served: ServedModel) -> bool:
        """Turn after turn; True once the worker is stopped, False where the engine failed."""
        self.served, self.has_served = served, True
        self.metrics.watch(served)
        try:
            with served.engine.at_work():
                while self.turn(served):
                    pass
            with reported("the history"):
                served.close()
            return True
        except Exception as error:
            logger.critical("the engine failed; open requests get an error, and it is loaded anew", exc_info=error)
        self.forget_engine()
        return False

    def forget_engine(self) -> None:
        """Ends every open request, and keeps nothing of the engine: there may be no room for a second one beside it."""
        self.served = self.step_began_at = None
        self.generations.clear()
        self.metrics.unwatch()
        self.post(partial(self.tickets.fail, UnavailableError(FailureReason.FAILED)))

    def turn(self, served: ServedModel) -> bool:
        """Takes all commands, waiting for one while there is nothing to do; then runs one engine step."""
        engine = served.engine
        while not engine.has_work or not self.inbox.empty():
            command = self.inbox.get()
            if command is None:
                return False
            command()
        self.step_began_at = time.monotonic()
        emissions, stats = engine.step()
        self.step_began_at = None
        with reported("metrics"):
            self.metrics.observe_step(stats)
        now = time.perf_counter()
        self.post(partial(deliver, [piece for emission in emissions for piece in self.delivery(emission, stats, now)]))
        return True

    def add(self, ticket: Ticket, prompts: list[Prompt]) -> None:
        assert self.served is not None
        try:
            for index, prompt in enumerate(prompts):
                sequence = self.served.engine.add(prompt.request)
                text = self.served.codec.stream(prompt.stop, prompt.request.stop.min_tokens)
                echo = self.served.codec.stream() if prompt.is_echoed else None
                self.generations[sequence.id] = ticket, Generation(index, sequence, text, echo, prompt.operation)
        except Exception as error:
            self.refuse(ticket, error)

    def cancel(self, ticket: Ticket) -> None:
        for owner, generation in list(self.generations.values()):
            if owner is ticket:
                self.end(generation)
                with reported("a trace"):
                    self.metrics.observe_cancelled()
                    latency = time.perf_counter() - ticket.arrived_at
                    self.trace(generation.outcome(FinishReason.CANCELLED), latency, ticket.traceparent)

    def end(self, generation: Generation) -> None:
        assert self.served is not None
        self.served.engine.cancel(generation.sequence)
        del self.generations[generation.sequence.id]

    def refuse(self, ticket: Ticket, error: Exception) -> None:
        """Ends one request with an error that is its own."""
        self.cancel(ticket)
        self.post(partial(ticket.receive, error))

    def delivery(self, emission: Emission, stats: StepStats, now: float) -> Iterator[tuple[Ticket, Piece]]:
        """The piece that an emission makes; none where its request fails in this, or failed with another choice."""
        ticket, generation = self.generations.get(emission.sequence.id, (None, None))
        if ticket is None or generation is None:
            return
        try:
            if emission.sequence.failure:
                raise emission.sequence.failure
            piece = self.advance(ticket, generation, emission, stats, now)
        except Exception as error:
            self.refuse(ticket, error)
        else:
            yield ticket, piece

    def advance(
        self, ticket: Ticket, generation: Generation, emission: Emission, stats: StepStats, now: float
    ) -> Piece:
        generation.spend(stats)
        if generation.first_token_at is not None:
            self.metrics.observe_further_tokens(len(emission.token_ids), now - generation.last_token_at)
        elif emission.token_ids:
            self.metrics.observe_first_token(now - ticket.arrived_at)
        piece = generation.advance(emission, now)
        if piece.outcome:
            self.end(generation)
            self.metrics.observe_outcome(piece.outcome, now - ticket.arrived_at)
            with reported("a trace"):
                self.trace(piece.outcome, now - ticket.arrived_at, ticket.traceparent)
        return piece

    def post(self, callback: Callable[[], None]) -> None:
        # A closed loop has no readers left to tell.
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)


@contextlib.contextmanager
def reported(what: str) -> Iterator[None]:
    """An error in what nobody's answer depends on is logged, and no more."""
    try:
        yield
    except Exception as error:
        logger.error("%s could not be recorded", what, exc_info=error)


def deliver(pieces: list[tuple[Ticket, Piece]]) -> None:
    for ticket, piece in pieces:
        if not piece.is_empty:
            ticket.receive(piece)
