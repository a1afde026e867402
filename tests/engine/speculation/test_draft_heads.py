"""Heads of drafts: made once, told each token of a sequence once, and forgotten."""

import gc
from dataclasses import replace

import pytest

from server.engine import (
    Checkpoint,
    Decoder,
    DraftModel,
    DraftVocabulary,
    GenerationRequest,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StopConditions,
)
from server.engine.model.draft_head import TAIL, DraftHead
from server.engine.speculation.base import DraftingParts
from server.engine.speculation.draft_heads import DraftHeads
from server.engine.speculation.drafters import LowBitDrafter, SkipDrafter

FIRST, SECOND = (DraftModel(vocabulary=DraftVocabulary(ids)) for ids in ((5, 6), (7, 8, 9)))
COPIED = replace(SECOND, is_low_bit=True)


def grown(heads: DraftHeads, draft: DraftModel, sequences: list[Sequence]) -> DraftHead:
    head = heads.grown(draft, sequences)
    assert head is not None
    return head


def sequence(number: int, ids: list[int]) -> Sequence:
    return Sequence.of(number, GenerationRequest(ids, SamplingParams(), StopConditions(50)), "skip", 4, 5000)


@pytest.fixture
def copied(checkpoint: Checkpoint) -> Decoder:
    model = Decoder(checkpoint)
    model.low_bit = Decoder(checkpoint)
    return model


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
    head = grown(heads, FIRST, [one])
    one.ids += [23, 24]
    assert grown(heads, FIRST, [one, other]) is head
    assert grown(heads, FIRST, [one, other]) is head
    assert told == [[1, 20, 21, 22], [23, 24], [1, 30], [], []]
    assert head.token_ids.tolist() == [5, 6, 1, 20, 21, 22, 23, 24, 30]


def test_another_vocabulary_is_told_everything(model: Decoder, told: list[list[int]]) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    grown(heads, FIRST, [one])
    one.ids.append(21)
    assert grown(heads, SECOND, [one]).token_ids.tolist() == [7, 8, 9, 1, 20, 21]
    one.ids.append(22)
    grown(heads, FIRST, [one])
    assert told == [[1, 20], [1, 20, 21], [1, 20, 21, 22]]


def test_a_sequence_that_ended_is_forgotten_once_or_twice(model: Decoder) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    head = grown(heads, FIRST, [one])
    heads.forget(one)
    heads.forget(one)
    assert not heads.told
    assert head.token_ids.tolist() == [5, 6, 1, 20]


def test_a_head_goes_with_its_vocabulary(model: Decoder) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    heads.grown(DraftModel(vocabulary=DraftVocabulary((5, 6))), [one])
    assert len(heads.heads) == 1
    heads.forget(one)
    gc.collect()
    assert not heads.heads


def test_of_a_long_prompt_the_last_tokens_stay(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert TAIL == 512
    made = "server.engine.speculation.draft_heads.DraftHead"
    monkeypatch.setattr(made, lambda decoder, vocabulary: DraftHead(decoder, vocabulary, 3))
    head = grown(DraftHeads(model), FIRST, [sequence(0, [20, 21, 22, 5, 20, 23, 21])])
    assert head.token_ids.tolist() == [5, 6, 20, 23, 21]


def test_drafters_of_one_engine_share_heads(model: Decoder) -> None:
    parts = DraftingParts(model, model.new_cache(1, 16), 0.5)
    skip, low_bit = SkipDrafter.of(parts), LowBitDrafter.of(parts)
    assert skip.heads is low_bit.heads is parts.heads
    assert skip.heads.model is model
    one = sequence(0, [1, 20])
    skip.heads.grown(FIRST, [one])
    low_bit.forget(one)
    assert not skip.heads.told


def test_a_draft_over_all_tokens_has_no_head(model: Decoder, told: list[list[int]]) -> None:
    heads = DraftHeads(model)
    assert heads.grown(DraftModel(SkipMask(frozenset({1}))), [sequence(0, [1, 20])]) is None
    assert not told and not heads.heads


def test_drafts_of_a_vocabulary_share_a_head_whatever_they_skip(model: Decoder) -> None:
    heads, one = DraftHeads(model), sequence(0, [1, 20])
    other = replace(FIRST, mask=SkipMask(frozenset({1})), max_draft=3, confidence=0.5)
    assert grown(heads, FIRST, [one]) is grown(heads, other, [one])


def test_model_and_copy_have_heads_of_their_own_and_each_is_told_all(copied: Decoder, told: list[list[int]]) -> None:
    heads, one = DraftHeads(copied), sequence(0, [1, 20])
    low_bit = replace(FIRST, is_low_bit=True)
    own, other = grown(heads, FIRST, [one]), grown(heads, low_bit, [one])
    assert own is not other
    one.ids.append(21)
    assert grown(heads, low_bit, [one]) is other
    assert grown(heads, FIRST, [one]) is own
    assert told == [[1, 20], [1, 20], [21], [21]]
    heads.forget(one)
    assert not heads.told


def of_domain(number: int, domain: str = "test") -> Sequence:
    return replace(sequence(number, [1, 20]), route=Route(domain, COPIED))


def test_a_copy_scores_all_tokens_where_its_vocabulary_lacks_many_and_its_own_again_where_it_does_not(
    copied: Decoder,
) -> None:
    heads, one = DraftHeads(copied), of_domain(0)
    assert heads.fitting(COPIED, one) is COPIED
    heads.learn(COPIED, one, [7, 8, 7, 20, 9, 9, 8, 7])
    assert heads.fitting(COPIED, one) is COPIED
    heads.learn(COPIED, one, [30, 7, 31, 32])
    assert heads.fitting(COPIED, one) == replace(COPIED, vocabulary=None)
    one.ids += [30, 7, 31, 32]
    for _ in range(8):
        heads.learn(COPIED, one, [30, 31, 7, 20])
    assert heads.fitting(COPIED, one) is COPIED


def test_a_sequence_begins_as_its_kind_did_and_other_kinds_do_not(copied: Decoder) -> None:
    heads = DraftHeads(copied)
    for number in range(20):
        heads.learn(COPIED, of_domain(number), [7, 40 + number, 8])
        heads.forget(of_domain(number))
    assert len(heads.misses) == 0
    assert heads.fitting(COPIED, of_domain(20)).vocabulary is None
    assert heads.fitting(COPIED, of_domain(21, "other")) is COPIED


def test_a_draft_of_the_models_own_weights_keeps_its_vocabulary(copied: Decoder) -> None:
    heads, one, own = DraftHeads(copied), of_domain(0), replace(COPIED, is_low_bit=False)
    heads.learn(COPIED, one, list(range(40, 60)))
    assert heads.fitting(own, one) is own
    whole = replace(COPIED, vocabulary=None)
    assert heads.fitting(whole, one) is whole
