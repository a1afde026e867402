"""Heads of drafts: made once, told each token of a sequence once, and forgotten."""

import gc

import pytest

from server.engine import Decoder, DraftVocabulary, GenerationRequest, SamplingParams, Sequence, StopConditions
from server.engine.model.draft_head import TAIL, DraftHead
from server.engine.speculation.base import DraftingParts
from server.engine.speculation.draft_heads import DraftHeads
from server.engine.speculation.drafters import LowBitDrafter, SkipDrafter

FIRST, SECOND = DraftVocabulary((5, 6)), DraftVocabulary((7, 8, 9))


def sequence(number: int, ids: list[int]) -> Sequence:
    return Sequence.of(number, GenerationRequest(ids, SamplingParams(), StopConditions(50)), "skip", 4, 5000)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """What heads are given, call by call."""
    calls: list[list[int]] = []
    add = DraftHead.add
    monkeypatch.setattr(DraftHead, "add", lambda self, ids: calls.append(list(ids)) or add(self, ids))  # type: ignore[func-returns-value]
    return calls


def test_the_prompt_is_told_at_the_first_draft_and_then_what_is_new(model: Decoder, told: list[list[int]]) -> None:
    heads, one, other = DraftHeads(model), sequence(0, [1, 20, 21]), sequence(1, [1, 30])
    one.ids.append(22)
    head = heads.grown(FIRST, [one])
    one.ids += [23, 24]
    assert heads.grown(FIRST, [one, other]) is head
    assert heads.grown(FIRST, [one, other]) is head
    assert told == [[1, 20, 21, 22], [23, 24], [1, 30], [], []]
    assert head.token_ids.tolist() == [5, 6, 1, 20, 21, 22, 23, 24, 30]


def test_another_vocabulary_is_told_everything(model: Decoder, told: list[list[int]]) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    heads.grown(FIRST, [one])
    one.ids.append(21)
    assert heads.grown(SECOND, [one]).token_ids.tolist() == [7, 8, 9, 1, 20, 21]
    one.ids.append(22)
    heads.grown(FIRST, [one])
    assert told == [[1, 20], [1, 20, 21], [1, 20, 21, 22]]


def test_a_sequence_that_ended_is_forgotten_once_or_twice(model: Decoder) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    head = heads.grown(FIRST, [one])
    heads.forget(one)
    heads.forget(one)
    assert not heads.told
    assert head.token_ids.tolist() == [5, 6, 1, 20]


def test_a_head_goes_with_its_vocabulary(model: Decoder) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    heads.grown(DraftVocabulary((5, 6)), [one])
    assert len(heads.heads) == 1
    heads.forget(one)
    gc.collect()
    assert not heads.heads


def test_of_a_long_prompt_the_last_tokens_stay(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TAIL == 512
    made = "server.engine.speculation.draft_heads.DraftHead"
    monkeypatch.setattr(made, lambda decoder, vocabulary: DraftHead(decoder, vocabulary, 3))
    head = DraftHeads(model).grown(FIRST, [sequence(0, [20, 21, 22, 5, 20, 23, 21])])
    assert head.token_ids.tolist() == [5, 6, 20, 23, 21]


def test_drafters_of_one_engine_share_heads(model: Decoder) -> None:
    parts = DraftingParts(model, model.new_cache(1, 16), 0.5)
    skip, low_bit = SkipDrafter.of(parts), LowBitDrafter.of(parts)
    assert skip.heads is low_bit.heads is parts.heads
    assert skip.heads.decoder is model
    one = sequence(0, [1, 20])
    skip.heads.grown(FIRST, [one])
    low_bit.forget(one)
    assert not skip.heads.told
