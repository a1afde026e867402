"""Whose turn it is: slots among clients, the tokens of a step among prompts, and texts that do not depend on either."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import Decoder, Engine, FinishReason, GenerationRequest, SamplingParams, Sequence
from tests.batches import GREEDY, Models, new_engine, plain_output, prompt, request, run

KINDS = ["torch", "float32", "bfloat16"]


def read_in(engine: Engine, sequences: list[Sequence]) -> list[int]:
    """How many tokens of each prompt the next step reads."""
    before = [s.cursor for s in sequences]
    engine.step()
    return [min(s.cursor, s.prompt_length) - b for s, b in zip(sequences, before, strict=True)]


def of(client: str | None, *, seed: int = 0, max_tokens: int = 3) -> GenerationRequest:
    return replace(request(prompt(5, seed), max_tokens), client=client)


def test_a_short_prompt_is_read_beside_a_long_one(model: Decoder) -> None:
    engine = new_engine(model, prefill_chunk=16)
    long, short = engine.add(request(prompt(200, 1))), engine.add(request(prompt(8, 2)))
    assert read_in(engine, [long, short]) == [8, 8]
    assert len(short.output_ids) == 1 and not long.is_prefilled


def test_half_of_a_step_is_the_oldest_prompts_and_the_rest_the_shortests(model: Decoder) -> None:
    engine = new_engine(model, 4, prefill_chunk=20)
    lengths = [100, 40, 13, 40]
    four = [engine.add(request(prompt(length, seed))) for seed, length in enumerate(lengths)]
    assert read_in(engine, four) == [10, 0, 10, 0]
    assert read_in(engine, four) == [10, 7, 3, 0], "what the shortest leaves is the next one's"


def test_prompts_are_counted_for_each_answer(model: Decoder) -> None:
    engine = new_engine(model, 4, prefill_chunk=4)
    engine.add(request(prompt(4), 30))
    engine.step()
    for seed in range(3):
        engine.add(request(prompt(30, seed), 1))
    assert engine.scheduler.plan().crowd == 3.0


def test_no_prompt_waits_for_ever_while_short_ones_keep_coming(model: Decoder) -> None:
    engine = new_engine(model, 2, prefill_chunk=16)
    long = engine.add(request(prompt(160, 1), 1))
    for seed in range(20):
        engine.add(request(prompt(16, 2 + seed), 1))
        engine.step()
    assert long.finish_reason == FinishReason.LENGTH


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_share_a_pass_begin_as_alone(models: Models, kind: str) -> None:
    """First tokens, and log-probabilities of the prompts, of chunks of different lengths in one pass."""
    asked = [
        replace(request(prompt(length, seed), 6), scores_prompt=seed % 2 == 0, num_logprobs=1)
        for seed, length in enumerate([30, 5, 17, 64, 2])
    ]
    engine = new_engine(models(kind), 8, prefill_chunk=64)
    together = [engine.add(one) for one in asked]
    _, steps = run(engine)
    assert sum(stats.prefill_tokens for stats in steps) == 118
    for sequence in together:
        (alone,) = new_engine(models(kind), 1, prefill_chunk=7).generate([sequence.request])
        assert sequence.output_ids == alone.output_ids
        scores = [[entry.logprob for entry in s.prompt_logprobs[1:]] for s in (sequence, alone)]
        assert scores[0] == (scores[1] if kind != "torch" else pytest.approx(scores[1], abs=1e-4))


def test_choices_wait_for_the_one_that_reads_their_prompt(model: Decoder) -> None:
    engine = new_engine(model, 4, prefill_chunk=64)
    shared = prompt(40)
    four = [engine.add(request(shared + [100 + i] * (1 + i), 4)) for i in range(4)]
    other = engine.add(request(prompt(3, 9), 4))
    _, steps = run(engine)
    assert [s.num_cached for s in four] == [0, 40, 40, 40]
    assert sum(stats.prefill_tokens for stats in steps) == sum(s.prompt_length for s in four) - 120 + 3
    assert sum(stats.cached_tokens for stats in steps) == 120
    for sequence in [*four, other]:
        assert sequence.output_ids == plain_output(model, sequence.request)


def test_a_prompt_that_is_mostly_known_counts_as_short(model: Decoder) -> None:
    engine = new_engine(model, 3, prefill_chunk=16)
    known = prompt(100, 1)
    engine.generate([request(known, 1)])
    long, middle = engine.add(request(prompt(150, 2))), engine.add(request(prompt(60, 3)))
    turn = engine.add(request([*known, 7, 8, 9]))
    assert read_in(engine, [long, middle, turn]) == [8, 5, 103]
    assert turn.num_cached == 100


def test_a_client_with_many_does_not_stop_anothers_first(model: Decoder) -> None:
    engine = new_engine(model, 2)
    crowd = [engine.add(of("crowd", seed=i)) for i in range(30)]
    engine.step()
    late, none = engine.add(of("late")), engine.add(of(None))
    ended: list[Sequence] = []
    while engine.has_work:
        ended += [e.sequence for e in engine.step()[0] if e.finish_reason]
    assert {late, none} <= set(ended[:6])
    assert sorted(crowd, key=lambda s: s.admitted_at or 0.0) == crowd, "its own come in order"


def test_slots_are_shared_evenly_by_who_holds_the_fewest(model: Decoder) -> None:
    engine = new_engine(model, 6)
    for i in range(30):
        engine.add(of("abc"[i % 3] if i < 9 else "a", max_tokens=20))
    engine.step()
    assert Counter(s.request.client for s in engine.scheduler.running) == {"a": 2, "b": 2, "c": 2}


def test_cancelled_work_leaves_at_once_wherever_it_is(model: Decoder) -> None:
    engine = new_engine(model, 2, prefill_chunk=16)
    reading, decoding = engine.add(request(prompt(100, 1))), engine.add(of("b", max_tokens=50))
    waiting = [engine.add(of(client, seed=i)) for i, client in enumerate("aabbc")]
    engine.step()
    for victim in [reading, decoding, *waiting[:3]]:
        engine.cancel(victim)
    assert (engine.num_running, engine.num_waiting) == (0, 2)
    emissions, steps = run(engine)
    assert {e.sequence for e in emissions} == set(waiting[3:])
    assert sum(stats.prefill_tokens for stats in steps) == 10, "nothing more of the others' prompts is read"
    assert not engine.scheduler.waiting and sorted(engine.scheduler.free_slots) == [0, 1]


def test_a_running_answer_gets_a_token_in_every_step(model: Decoder) -> None:
    engine = new_engine(model, 4, prefill_chunk=64)
    running = engine.add(request(prompt(4), 200, method="plain"))
    engine.step()
    arrived = [engine.add(request(prompt(100 + i, i), 1)) for i in range(3)]
    num_steps = 0
    while not all(s.finish_reason for s in arrived):
        length = len(running.output_ids)
        emissions, stats = engine.step()
        num_steps += 1
        assert len(running.output_ids) == length + 1 and emissions[0].sequence is running
        assert stats.prefill_tokens <= 64 and stats.decode_seconds > 0
    assert num_steps >= 5


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_texts_are_the_same_in_any_company_and_by_any_chunks(models: Models, seed: int) -> None:
    chance = random.Random(seed)
    model = models("bfloat16")
    engine = new_engine(model, chance.choice([2, 3, 5]), prefill_chunk=chance.choice([3, 16, 64]))
    texts = [prompt(40, seed % 1000), prompt(90, seed % 999)]
    sequences = []
    for _ in range(9):
        begin = chance.choice(texts)
        ids = [*begin[: chance.randrange(1, len(begin) + 1)], chance.randrange(6, 262)]
        sampling = chance.choice([GREEDY, SamplingParams(0.9, top_p=0.9, seed=5)])
        asked = request(ids, chance.randrange(1, 12), sampling=sampling)
        sequences.append(engine.add(replace(asked, client=chance.choice(["a", "b", None]))))
        for _ in range(chance.randrange(3)):
            engine.step()
        if chance.random() < 0.2:
            engine.cancel(sequences.pop(chance.randrange(len(sequences))))
    run(engine)
    for sequence in sequences:
        alone = new_engine(model, 1, reuses_prefixes=False).generate([sequence.request])[0]
        assert sequence.output_ids == alone.output_ids
        assert sequence.stats.num_steps <= len(sequence.output_ids)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=0.9, seed=4)])
@pytest.mark.parametrize("kind", KINDS)
def test_who_gives_its_blocks_back_goes_on_with_the_same_text(
    models: Models, kind: str, sampling: SamplingParams
) -> None:
    """Four answers of 100 tokens in a cache of 192: all begin, most stop on the way, and each is whole in the end."""
    engine = new_engine(models(kind), 4, max_length=192, cache_tokens=192)
    requests = [request(prompt(20, seed), 100, sampling=sampling) for seed in range(4)]
    sequences = [engine.add(one) for one in requests]
    emissions, steps = run(engine)
    assert sum(step.num_preempted for step in steps) > 2
    assert [s.output_ids for s in sequences] == [plain_output(models(kind), one) for one in requests]
    for sequence in sequences:
        assert sequence.num_cached == 0, "what it read twice was no earlier text"
        assert [t for e in emissions if e.sequence is sequence for t in e.token_ids] == sequence.output_ids
    assert engine.tables.pool.num_used == 0 and len(engine.scheduler.free_slots) == 4


def test_the_first_to_begin_is_the_first_to_end(model: Decoder) -> None:
    engine = new_engine(model, 3, max_length=128, cache_tokens=128)
    sequences = [engine.add(request(prompt(30, seed), 60)) for seed in range(3)]
    ended = [e.sequence for e in run(engine)[0] if e.finish_reason]
    assert ended == sequences


def test_a_prompt_waits_until_there_are_blocks_for_it(model: Decoder) -> None:
    """Not in the middle of its reading, where it would keep others from theirs."""
    engine = new_engine(model, 4, max_length=256, cache_tokens=256)
    first, second = engine.add(request(prompt(150, 1), 4)), engine.add(request(prompt(150, 2), 4))
    engine.step()
    assert engine.scheduler.running == [first] and engine.num_waiting == 1
    _, steps = run(engine)
    assert len(second.output_ids) == 4 and not any(step.num_preempted for step in steps)


def test_who_lost_its_slot_can_be_cancelled_and_has_its_scores_once(model: Decoder) -> None:
    engine = new_engine(model, 2, max_length=128, cache_tokens=192)
    first = engine.add(request(prompt(40, 1), 60))
    scored = replace(request(prompt(40, 2), 60), scores_prompt=True, num_logprobs=0)
    second = engine.add(scored)
    engine.step()
    while not engine.num_waiting:
        engine.step()
    assert engine.scheduler.running == [first] and second.output_ids
    run(engine)
    assert len(second.prompt_logprobs) == 40 and len(second.output_ids) == 60
    third, fourth = (engine.add(request(prompt(40, seed), 60)) for seed in (3, 4))
    engine.step()
    while not engine.num_waiting:
        engine.step()
    engine.cancel(fourth)
    run(engine)
    assert fourth.finish_reason == FinishReason.CANCELLED and len(third.output_ids) == len(first.output_ids) == 60
