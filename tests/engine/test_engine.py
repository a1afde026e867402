"""The engine's bookkeeping: slots, ends, refusals and cancelling."""

import random
from dataclasses import replace
from typing import Any, NoReturn

import pytest

from server.engine import (
    MAX_DRAFT,
    Adjustments,
    Decoder,
    Engine,
    EngineConfig,
    FinishReason,
    PromptTooLongError,
    SamplingParams,
    Sequence,
    StopConditions,
    methods,
)
from server.engine.speculation.drafters import LookupDrafter
from tests.batches import new_engine, plain_output, prompt, request, run


def assert_idle(engine: Engine) -> None:
    assert (engine.has_work, engine.num_running, engine.num_waiting) == (False, 0, 0)
    assert sorted(engine.scheduler.free_slots) == list(range(engine.config.max_batch))
    lookup = engine.speculator.drafters["lookup"]
    assert isinstance(lookup, LookupDrafter) and not lookup.indexes
    assert engine.speculator.policy is None or not engine.speculator.policy.gains


@pytest.mark.parametrize("num_steps", [0, 2, 5], ids=["waiting", "prefilling", "decoding"])
def test_a_cancelled_sequence_frees_its_place_and_changes_nothing_for_others(model: Decoder, num_steps: int) -> None:
    engine = new_engine(model, max_batch=2, prefill_chunk=8)
    if num_steps == 0:
        others = [engine.add(request(prompt(5, seed), 30)) for seed in (1, 2)]
        engine.step()
        victim = engine.add(request(prompt(6)))
        next_one = engine.add(request(prompt(7, 3)))
        expected = (2, 1)
    else:
        others = [engine.add(request(prompt(5, 1), 30))]
        victim = engine.add(request(prompt(24), 60))
        next_one = engine.add(request(prompt(7, 3)))
        for _ in range(num_steps):
            engine.step()
        assert victim.is_prefilled == (num_steps == 5)
        expected = (1, 1)
    engine.cancel(victim)
    assert victim.finish_reason == FinishReason.CANCELLED
    assert (engine.num_running, engine.num_waiting) == expected
    length = len(victim.ids)
    engine.step()
    if num_steps:
        assert next_one.slot >= 0
    emissions, _ = run(engine)
    assert all(emission.sequence is not victim for emission in emissions)
    assert len(victim.ids) == length
    for sequence in [*others, next_one]:
        assert sequence.output_ids == plain_output(model, sequence.request)
    assert_idle(engine)


def test_cancelling_twice_or_after_the_end_does_nothing(model: Decoder) -> None:
    engine = new_engine(model)
    done, cancelled = engine.add(request(prompt(4), 1)), engine.add(request(prompt(5)))
    engine.cancel(cancelled)
    engine.cancel(cancelled)
    run(engine)
    engine.cancel(done)
    assert done.finish_reason == FinishReason.LENGTH
    assert_idle(engine)


def test_more_requests_than_slots_are_served_in_order(model: Decoder) -> None:
    engine = new_engine(model, max_batch=3)
    sequences = [engine.add(request(prompt(4 + i, i), 5 + i)) for i in range(10)]
    started: list[Sequence] = []
    most = 0
    while engine.has_work:
        emissions, stats = engine.step()
        started += [e.sequence for e in emissions if e.sequence not in started]
        most = max(most, stats.num_running)
        assert engine.num_running <= 3
    assert started == sequences
    assert most == 3
    for sequence in sequences:
        assert sequence.output_ids == plain_output(model, sequence.request)
    assert_idle(engine)


def test_emissions_joined_are_the_output_and_the_last_one_ends_it(model: Decoder) -> None:
    engine = new_engine(model)
    sequences = [engine.add(request(prompt(5 + i, i), 9)) for i in range(4)]
    emissions, _ = run(engine)
    for sequence in sequences:
        mine = [e for e in emissions if e.sequence is sequence]
        assert [token for e in mine for token in e.token_ids] == sequence.output_ids
        assert [e.finish_reason for e in mine] == [None] * (len(mine) - 1) + [FinishReason.LENGTH]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths(model: Decoder) -> None:
    engine = new_engine(model, max_length=16)
    with pytest.raises(PromptTooLongError, match="16 tokens, the context holds 16") as caught:
        engine.add(request(prompt(16)))
    assert (caught.value.prompt_length, caught.value.max_length) == (16, 16)
    assert not engine.has_work
    assert engine.generate([request(prompt(15))])[0].finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt_ids": []}, "no tokens"),
        ({"prompt_ids": [1, 262]}, "between 0 and 261"),
        ({"prompt_ids": [1, -1]}, "between 0 and 261"),
        ({"stop": StopConditions(-1)}, "max_tokens"),
        ({"max_draft": -1}, "max_draft"),
        ({"max_draft": MAX_DRAFT + 1}, "max_draft"),
    ],
    ids=str,
)
def test_a_request_that_cannot_be_run_is_refused(model: Decoder, changes: dict[str, Any], said: str) -> None:
    engine = new_engine(model)
    with pytest.raises(ValueError, match=said):
        engine.add(replace(request(prompt(6)), **changes))
    assert_idle(engine)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_batch": 0},
        {"prefill_chunk": 0},
        {"baseline_share": 1.5},
        {"reading_share": 1.0},
        {"max_draft": MAX_DRAFT + 1},
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_run_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        EngineConfig(**changes)


def test_the_limit_is_at_most_the_models(model: Decoder) -> None:
    assert new_engine(model, max_length=10_000).max_length == model.config.max_length
    assert Engine(model, EngineConfig(max_batch=1)).max_length == model.config.max_length


@pytest.mark.parametrize("method", list(methods()))
def test_the_end_of_the_context_ends_the_text(model: Decoder, method: str) -> None:
    engine = new_engine(model, max_length=32)
    sequence = engine.generate([request(prompt(20), 500, method=method)])[0]
    assert sequence.finish_reason == FinishReason.LENGTH
    assert len(sequence.ids) == 32
    assert sequence.output_ids == plain_output(model, request(prompt(20), 12))


@pytest.mark.parametrize("method", list(methods()))
def test_one_token_comes_with_the_prompt(model: Decoder, method: str) -> None:
    engine = new_engine(model)
    [emission], stats = (engine.add(request(prompt(6), 1, method=method)), engine.step())[1]
    assert (len(emission.token_ids), emission.finish_reason) == (1, FinishReason.LENGTH)
    assert (stats.prefill_tokens, stats.rows, stats.num_running) == (6, [], 0)
    assert_idle(engine)


def test_a_stop_token_as_the_first_token_ends_the_text(model: Decoder) -> None:
    first = plain_output(model, request(prompt(6)))[0]
    sequence = new_engine(model).generate([request(prompt(6), stop=frozenset({first}))])[0]
    assert (sequence.output_ids, sequence.finish_reason) == ([first], FinishReason.STOP)
    assert sequence.stats.num_steps == 0


@pytest.mark.parametrize("method", list(methods()))
def test_a_stop_token_ends_the_text_wherever_it_comes(model: Decoder, method: str) -> None:
    text = plain_output(model, request(prompt(8, 2), 24))
    for token in set(text):
        engine = new_engine(model)
        sequence = engine.generate([request(prompt(8, 2), 24, frozenset({token}), method=method)])[0]
        assert sequence.output_ids == text[: text.index(token) + 1]
        assert sequence.finish_reason == FinishReason.STOP
        assert_idle(engine)


@pytest.mark.parametrize("num_steps", [0, 2], ids=["first token", "decoding"])
@pytest.mark.parametrize("method", list(methods()))
def test_an_error_in_one_sequences_part_of_a_step_is_its_own(
    model: Decoder, monkeypatch: pytest.MonkeyPatch, method: str, num_steps: int
) -> None:
    engine, error = new_engine(model), RuntimeError("broken on purpose")

    def broken(*_: object) -> NoReturn:
        raise error

    adjusted = SamplingParams(adjustments=Adjustments(((7, 1.0),)))
    others = [engine.add(request(prompt(6, seed), 20, method=method)) for seed in (1, 2)]
    victim = engine.add(request(prompt(5, 3), 20, sampling=adjusted, method=method))
    for _ in range(num_steps):
        engine.step()
    monkeypatch.setattr(victim.processor, "apply", broken)
    emissions, _ = run(engine)
    assert (victim.failure, victim.finish_reason) == (error, FinishReason.ERROR)
    assert [each.finish_reason for each in emissions if each.sequence is victim][-1:] == [FinishReason.ERROR]
    for sequence in others:
        assert sequence.failure is None
        assert sequence.output_ids == plain_output(model, sequence.request)
    assert_idle(engine)


def test_five_hundred_requests_leave_nothing_behind(model: Decoder) -> None:
    rng = random.Random(0)
    engine = new_engine(model, max_batch=8)
    for i in range(500):
        sequence = engine.add(
            request(prompt(rng.randrange(2, 8), i), rng.randrange(1, 4), method=rng.choice(list(methods())))
        )
        if rng.random() < 0.3:
            engine.step()
        if rng.random() < 0.4:
            engine.cancel(sequence)
    run(engine)
    assert_idle(engine)
    assert not engine.has_work
