"""The thread, the queue in front of it, and what happens when either ends."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import (
    Checkpoint,
    GenerationRequest,
    PromptTooLongError,
    RoutingArtifact,
    SamplingParams,
    StopConditions,
)
from server.generation import Outcome, Piece, Prompt
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import DeadlineError, QueueFullError, QueueLimits, Ticket, Tickets
from server.worker import UnavailableError, Worker
from tests.api.live import GatedEngine, make_worker

Scenario = Callable[[Worker, GatedEngine], Coroutine[Any, Any, None]]


def prompt(num_tokens: int = 3, max_tokens: int = 5) -> Prompt:
    return Prompt(GenerationRequest([9] * num_tokens, SamplingParams(), StopConditions(max_tokens)))


async def collect(worker: Worker, *prompts: Prompt) -> list[Piece]:
    ticket = worker.reserve(len(prompts), 1, timeout=30)
    try:
        worker.submit(ticket, list(prompts))
        return [piece async for piece in ticket.pieces()]
    finally:
        worker.release(ticket)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


@pytest.fixture
def play(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> Callable[[Scenario], None]:
    """Runs a scenario against a started worker, and always stops it."""

    def run(scenario: Scenario) -> None:
        worker, engine = make_worker(checkpoint, tiny_artifact, limits=QueueLimits(6, 40))

        async def main() -> None:
            worker.start()
            try:
                await until(lambda: worker.unavailable != "loading")
                await scenario(worker, engine)
            finally:
                engine.gate.set()
                await worker.stop()

        asyncio.run(main())
        assert not worker.thread.is_alive()

    return run


def test_each_sequence_ends_with_its_outcome(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        pieces = await collect(worker, prompt(max_tokens=5), prompt(max_tokens=7))
        outcomes = {piece.index: piece.outcome for piece in pieces if piece.outcome}
        assert {index: outcome.completion_tokens for index, outcome in outcomes.items()} == {0: 5, 1: 7}
        assert all(outcome.queue_seconds >= 0 and outcome.prefill_seconds > 0 for outcome in outcomes.values())
        assert not worker.tickets.open
        assert not worker.generations

    play(scenario)


def test_an_idle_worker_takes_no_steps(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        await collect(worker, prompt())
        steps = engine.num_steps
        for _ in range(5):
            ticket = worker.reserve(1, 1, timeout=30)
            worker.release(ticket)
            await asyncio.sleep(0.01)
        assert engine.num_steps == steps

    play(scenario)


def test_a_prompt_that_is_too_long_fails_alone(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        worker.tickets.limits = QueueLimits(6, 10_000)
        with pytest.raises(PromptTooLongError):
            await collect(worker, prompt(), prompt(num_tokens=256))
        await until(lambda: not worker.generations)
        assert (await collect(worker, prompt()))[-1].outcome

    play(scenario)


def test_deadline_ends_a_request(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        engine.gate.clear()
        ticket = worker.reserve(1, 1, timeout=0.01)
        worker.submit(ticket, [prompt()])
        with pytest.raises(DeadlineError):
            await anext(ticket.pieces())
        worker.release(ticket)
        engine.gate.set()
        await until(lambda: not worker.generations and not engine.has_work)

    play(scenario)


def test_draining_finishes_what_was_accepted(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        engine.gate.clear()
        accepted = asyncio.create_task(collect(worker, prompt()))
        await until(lambda: engine.num_steps > 0)
        worker.drain()
        with pytest.raises(UnavailableError, match="draining"):
            worker.reserve(1, 1, timeout=30)
        engine.gate.set()
        assert isinstance((await accepted)[-1].outcome, Outcome)

    play(scenario)


def test_queue_counts_sequences_and_tokens(play: Callable[[Scenario], None]) -> None:
    async def scenario(worker: Worker, engine: GatedEngine) -> None:
        whole = worker.reserve(100, 1000, timeout=30)
        with pytest.raises(QueueFullError):
            worker.reserve(1, 1, timeout=30)
        worker.release(whole)
        first, second = worker.reserve(1, 10, timeout=30), worker.reserve(5, 10, timeout=30)
        with pytest.raises(QueueFullError):
            worker.reserve(1, 1, timeout=30)
        with pytest.raises(QueueFullError):
            worker.submit(first, [prompt(num_tokens=31)])
        worker.release(second)
        worker.release(second)
        worker.submit(first, [prompt(num_tokens=31)])
        assert (await anext(first.pieces())).index == 0
        worker.release(first)

    play(scenario)


def test_a_client_with_many_leaves_half_of_the_places_to_others() -> None:
    async def main() -> None:
        tickets = Tickets(QueueLimits(8, 100), lambda: None, lambda: None)
        tickets.take(1000, 1000, timeout=30, client="a")
        with pytest.raises(QueueFullError):
            tickets.take(1, 1, timeout=30, client="a")
        for _ in range(4):
            last = tickets.take(1, 12, timeout=30, client="b")
        for client in ("b", "c"):
            with pytest.raises(QueueFullError):
                tickets.take(1, 1, timeout=30, client=client)
        with pytest.raises(QueueFullError):
            tickets.resize(last, 15)
        tickets.resize(last, 14)
        tickets.close(last)
        tickets.take(1, 14, timeout=30, client="c")

    asyncio.run(main())


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(0, 30)), max_size=40))
def test_open_tickets_never_exceed_the_limits(actions: list[tuple[bool, int, int]]) -> None:
    async def main() -> None:
        refusals: list[bool] = []
        tickets = Tickets(QueueLimits(8, 50), lambda: refusals.append(True), lambda: None)
        taken: list[Ticket] = []
        num_refused = 0
        for is_taken, num_sequences, num_tokens in actions:
            if is_taken or not taken:
                try:
                    taken.append(tickets.take(num_sequences, num_tokens, timeout=30))
                except QueueFullError:
                    num_refused += 1
            else:
                tickets.close(taken.pop())
            assert tickets.open == set(taken)
            assert len(taken) <= 1 or sum(ticket.num_sequences for ticket in taken) <= 8
            assert len(taken) <= 1 or sum(ticket.num_tokens for ticket in taken) <= 50
        for ticket in taken:
            tickets.close(ticket)
        assert len(refusals) == num_refused

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_is_remembered() -> None:
    def load() -> ServedModel:
        raise ValueError("no such model")

    async def main() -> None:
        worker = Worker(load, QueueLimits(1, 1), Metrics())
        assert worker.unavailable == "dead"
        worker.start()
        await until(lambda: worker.failure is not None)
        assert str(worker.failure) == "no such model"
        await worker.stop()

    asyncio.run(main())
