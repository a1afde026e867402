"""Prefix reuse: what was read before is not read again, and nothing else changes."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine import Engine, SamplingParams, Sequence
from server.engine.prefixes import SHORTEST
from tests.batches import GREEDY, Models, new_engine, prompt, request, run

SAMPLED = SamplingParams(temperature=0.9, top_p=0.9, seed=3)
KINDS = ["torch", "float32", "bfloat16"]


def ask(engine: Engine, ids: list[int], sampling: SamplingParams = GREEDY, owner: str | None = None) -> Sequence:
    """One answer; drafts skip layers, so that keys of drafts were written where the answer's own stand."""
    asked = replace(request(ids, max_tokens=12, sampling=sampling), owner=owner)
    (sequence,) = engine.generate([asked])
    return sequence


def state_of(engine: Engine, sequence: Sequence) -> torch.Tensor:
    assert sequence.prompt_vector is not None
    return sequence.prompt_vector


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chat_reads_only_what_is_new(models: Models, kind: str, sampling: SamplingParams) -> None:
    """Three turns: each has the one before and its answer as its beginning."""
    engine, ids = new_engine(models(kind), 2), prompt(40)
    num_known = 0
    for turn in range(3):
        answer = ask(engine, ids, sampling)
        fresh = ask(new_engine(models(kind), 2, reuses_prefixes=False), ids, sampling)
        assert answer.num_cached == num_known and fresh.num_cached == 0
        assert answer.output_ids == fresh.output_ids
        if kind == "torch":
            torch.testing.assert_close(answer.prompt_vector, fresh.prompt_vector)
        else:
            assert torch.equal(state_of(engine, answer), state_of(engine, fresh)), "bit for bit"
        num_known = len(answer.ids) - 1
        ids = [*answer.ids, *prompt(9, seed=turn)]


def test_the_same_prompt_again_reads_its_last_token(models: Models) -> None:
    engine, ids = new_engine(models("float32"), 2), prompt(100)
    first = ask(engine, ids)
    sequence = engine.add(request(ids))
    _, steps = run(engine)
    assert sequence.num_cached == 99 and sequence.output_ids == first.output_ids
    assert sum(step.prefill_tokens for step in steps) == 1
    assert sum(step.cached_tokens for step in steps) == 99


@pytest.mark.parametrize("kind", KINDS)
def test_choices_of_one_prompt_share_it_while_they_run(models: Models, kind: str) -> None:
    """The others copy what the first one has read, in the middle of its own answer."""
    engine, ids = new_engine(models(kind), 4, prefill_chunk=16), prompt(50)
    asked = [request(ids, 20, sampling=replace(SAMPLED, seed=seed)) for seed in range(4)]
    together = engine.generate(asked)
    assert [sequence.num_cached for sequence in together] == [0, 49, 49, 49]
    alone = [new_engine(models(kind), 1, reuses_prefixes=False).generate([one])[0] for one in asked]
    assert [s.output_ids for s in together] == [s.output_ids for s in alone]


def test_owners_do_not_share(models: Models) -> None:
    """Nobody learns from the time to a first token what another one has asked."""
    engine, ids = new_engine(models("float32"), 4), prompt(60)
    assert [ask(engine, ids, owner=owner).num_cached for owner in ("a", "b", None, "a", "b", None)] == [0] * 3 + [
        59
    ] * 3


def test_short_beginnings_scored_prompts_and_an_engine_that_is_told_not_to_read_all(models: Models) -> None:
    engine, ids = new_engine(models("float32"), 2), prompt(60)
    ask(engine, ids)
    assert ask(engine, ids[: SHORTEST - 1] + prompt(30, seed=5)).num_cached == 0
    scored = replace(request(ids), scores_prompt=True, num_logprobs=1)
    (sequence,) = engine.generate([scored])
    assert sequence.num_cached == 0 and len(sequence.prompt_logprobs) == 60
    engine = new_engine(models("float32"), 2, reuses_prefixes=False)
    assert [ask(engine, ids).num_cached for _ in range(2)] == [0, 0]


def test_more_texts_are_kept_than_there_are_slots_and_the_one_unused_for_longest_goes_first(models: Models) -> None:
    """Each takes two blocks of the eight that a context has."""
    engine = new_engine(models("float32"), 1)
    texts = [prompt(40, seed=seed) for seed in range(5)]
    for ids in texts[:3]:
        assert ask(engine, ids).num_cached == 0
    assert [ask(engine, ids).num_cached for ids in (texts[2], texts[0], texts[1])] == [39] * 3
    assert engine.tables.pool.num_evicted == 0
    ask(engine, texts[3])
    engine.add(request(texts[4]))
    _, steps = run(engine)
    assert engine.tables.pool.num_evicted == sum(step.num_evicted for step in steps) > 0
    assert [ask(engine, ids).num_cached for ids in (texts[1], texts[2])] == [39, 0]


def test_blocks_of_a_common_beginning_are_there_once(models: Models) -> None:
    """Four texts of four blocks, of which they have three in common, take four blocks and three more."""
    engine, common = new_engine(models("float32"), 4), prompt(96)
    requests = [request([*common, *prompt(12, seed=seed)], 8) for seed in range(4)]
    sequences = [engine.add(one) for one in requests]
    while not all(sequence.output_ids for sequence in sequences):
        engine.step()
    assert engine.tables.pool.num_used == 3 + 4
    run(engine)
    assert engine.tables.pool.num_used == 0 and len(engine.tables.pool.kept) == 3 + 4
    plain = [new_engine(models("float32"), 1, reuses_prefixes=False).generate([one])[0] for one in requests]
    assert [s.output_ids for s in sequences] == [s.output_ids for s in plain]


def test_a_long_text_is_not_lost_to_one_that_begins_alike(models: Models) -> None:
    """A second chat with the same system prompt copies a part of the first one's block."""
    engine, system = new_engine(models("float32"), 2), prompt(20)
    long = system + prompt(60, seed=1)[1:]
    ask(engine, long)
    assert ask(engine, system + prompt(10, seed=2)[1:]).num_cached == 20
    assert ask(engine, long).num_cached == 78


def test_what_a_cancelled_request_has_read_is_kept(models: Models) -> None:
    engine, ids = new_engine(models("float32"), 1, prefill_chunk=16), prompt(60)
    sequence = engine.add(request(ids))
    engine.step()
    engine.step()
    engine.cancel(sequence)
    again = ask(engine, ids)
    assert again.num_cached == 32
    assert again.output_ids == ask(new_engine(models("float32"), 1, reuses_prefixes=False), ids).output_ids


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_any_traffic_is_answered_as_by_an_engine_that_reuses_nothing(models: Models, seed: int) -> None:
    """Prompts that branch from each other in waves of three on two slots, some cancelled on the way.

    The cache may be so small that sequences give their blocks back on the way.
    """
    chance = random.Random(seed)
    engine = new_engine(models("bfloat16"), 2, max_length=128, cache_tokens=chance.choice([128, 160, 256]))
    fresh = new_engine(models("bfloat16"), 1, reuses_prefixes=False)
    texts = [prompt(30, seed=seed % 1000)]
    for _ in range(3):
        asked = []
        for _ in range(3):
            text = chance.choice(texts)
            ids = text[: chance.randrange(2, len(text) + 1)] + [chance.randrange(6, 262) for _ in range(3)]
            asked.append(request(ids[:100], 8, sampling=chance.choice([GREEDY, SAMPLED])))
        sequences = [engine.add(one) for one in asked]
        if chance.random() < 0.5:
            engine.step()
            engine.cancel(sequences.pop(chance.randrange(3)))
        run(engine)
        for sequence in sequences:
            assert sequence.output_ids == fresh.generate([sequence.request])[0].output_ids
            texts.append(sequence.ids)
        assert_blocks_add_up(engine)


def assert_blocks_add_up(engine: Engine) -> None:
    """Nobody runs: each block is free or kept, the tree knows the kept ones, and tables are empty."""
    pool, tables = engine.tables.pool, engine.tables
    assert not any(pool.num_users) and not any(tables.blocks) and not any(engine.cache.tables)
    assert sorted([*pool.free, *pool.kept]) == list(range(1, pool.num_blocks + 1))
    assert set(pool.kept) == set(pool.tree.nodes)
