"""Recycled successors: the latest ones, of the owner's own texts, as far as they are likely enough."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import DraftModel, GenerationRequest, Route, SamplingParams, Sequence, StopConditions
from server.engine.speculation.base import Feedback
from server.engine.speculation.drafters import RecyclingDrafter
from server.engine.speculation.drafters.recycling import (
    FIRST_ACCEPTANCE,
    MAX_OWNERS,
    SUCCESSORS,
    Successors,
    expected_right,
    likely_length,
)

VOCABULARY = 50


def sequence(number: int, ids: list[int], owner: str | None = None) -> Sequence:
    request = GenerationRequest(ids, SamplingParams(seed=0), StopConditions(40), owner=owner)
    return Sequence.of(number, request, "recycling", max_draft=6, max_length=200)


def proposed(drafter: RecyclingDrafter, one: Sequence, row_price: float = 0.0) -> list[int]:
    return drafter.propose([one], row_price).get(one.id, [])


def test_a_token_is_followed_by_what_followed_it_last() -> None:
    drafter = RecyclingDrafter(VOCABULARY)
    one = sequence(0, [7, 8, 9, 7, 8, 5, 7])
    assert proposed(drafter, one) == [8, 5, 7, 8, 5, 7]
    one.ids += [3]
    assert proposed(drafter, one) == []
    one.ids += [8, 3]
    assert proposed(drafter, one) == [8, 3, 8, 3, 8, 3]


def test_texts_of_one_owner_draft_for_each_other_and_for_no_one_else() -> None:
    drafter = RecyclingDrafter(VOCABULARY)
    proposed(drafter, sequence(0, [1, 2, 3, 4], "a"))
    assert proposed(drafter, sequence(1, [9, 1], "a"))[:3] == [2, 3, 4]
    assert proposed(drafter, sequence(2, [9, 1], "b")) == []
    assert proposed(drafter, sequence(3, [9, 1])) == []


def test_the_least_used_table_makes_room() -> None:
    drafter = RecyclingDrafter(VOCABULARY)
    for number in range(MAX_OWNERS + 3):
        proposed(drafter, sequence(number, [1, 2, 3], str(number)))
        proposed(drafter, sequence(1000 + number, [1, 2, 3], "0"))
    assert len(drafter.tables) == MAX_OWNERS
    assert "0" in drafter.tables
    assert "1" not in drafter.tables


def test_drafts_grow_as_they_come_true_and_end_before_a_row_costs_more_than_it_promises() -> None:
    drafter, one = RecyclingDrafter(VOCABULARY), sequence(0, [1, 2, 1, 2, 1])
    before = proposed(drafter, one, row_price=0.2)
    assert before == [2]
    for _ in range(60):
        drafter.learn(one, Feedback(before, [2, 9], 1))
    assert len(proposed(drafter, one, row_price=0.2)) == 6
    for _ in range(60):
        drafter.learn(one, Feedback([2], [9], 0))
    assert len(proposed(drafter, one, row_price=0.2)) == 1
    drafter.forget(one)
    assert not (drafter.lengths or drafter.acceptances or drafter.latest or drafter.expected)


def test_a_promise_follows_the_tokens_that_were_right_and_passes_to_the_next_sequence_of_its_kind() -> None:
    drafter, one = RecyclingDrafter(VOCABULARY), sequence(0, [1, 2, 1, 2, 1])
    assert len(proposed(drafter, one)) == 6
    assert drafter.promise(one) == pytest.approx(expected_right(FIRST_ACCEPTANCE, 6))
    for _ in range(300):
        drafter.learn(one, Feedback([2, 1, 2], [2, 1, 2, 9], 3))
    proposed(drafter, one)
    assert drafter.promise(one) == pytest.approx(6, rel=0.05)
    other = sequence(1, [4, 5, 4])
    proposed(drafter, other)
    assert drafter.promise(other) > 5
    elsewhere = replace(sequence(2, [4, 5, 4]), route=Route("stories", DraftModel()))
    proposed(drafter, elsewhere)
    assert drafter.promise(elsewhere) == pytest.approx(expected_right(FIRST_ACCEPTANCE, 6))


@given(st.floats(0, 1), st.integers(0, 20))
def test_no_more_tokens_are_expected_than_are_proposed(acceptance: float, length: int) -> None:
    assert acceptance * min(length, 1) <= expected_right(acceptance, length) <= length


def test_a_tree_has_the_likeliest_ways_that_are_worth_their_rows() -> None:
    drafter, one = RecyclingDrafter(VOCABULARY), sequence(0, [7, 3, 7, 4, 5, 7, 6, 7])
    proposal = proposed(drafter, one)
    assert proposal[0] == 6
    # Successors are taken for right at .3, .1 and .05: 6 and 4, then 7 behind 6, 3 and 5, and 6 behind 6 7.
    assert drafter.branches(one, 0.0, 1) == ([6],)
    assert drafter.branches(one, 0.0, 2) == ([6], [4])
    assert drafter.branches(one, 0.0, 4) == ([4], [6, 7], [3])
    assert drafter.branches(one, 0.0, 6) == ([3], [4, 5], [6, 7, 6])
    assert drafter.branches(one, 0.08, 6) == ([4], [6, 7])
    for _ in range(60):
        drafter.learn(one, Feedback(proposal, [4], 0))
    proposed(drafter, one)
    assert [branch[0] for branch in drafter.branches(one, 0.2, 4)] == [4]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=40))
def test_successors_are_the_latest_different_ones(pairs: list[tuple[int, int]]) -> None:
    successors = Successors(4)
    for before, after in pairs:
        successors.add(before, after)
    for token in range(4):
        latest = [after for before, after in reversed(pairs) if before == token]
        assert successors.of(token) == list(dict.fromkeys(latest))[:SUCCESSORS]


@given(st.floats(0, 1), st.floats(0, 2), st.integers(0, 31))
def test_a_chain_is_as_long_as_its_last_token_is_worth_a_row(acceptance: float, price: float, longest: int) -> None:
    length = likely_length(acceptance, price, longest)
    assert min(longest, 1) <= length <= longest
    if length > 1:
        assert acceptance**length >= price * (1 - 1e-9)
    if 0 < length < longest:
        assert acceptance ** (length + 1) <= price * (1 + 1e-9)
