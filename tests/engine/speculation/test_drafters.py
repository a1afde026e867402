"""Drafters: what prompt lookup may propose, where a skipping draft ends, and who drafts for whom."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from server.engine import (
    EMPTY_MASK,
    FULL_MODEL,
    Checkpoint,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCache,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StepStats,
    StopConditions,
    TokenBatch,
)
from server.engine.speculation.base import Draft, Feedback
from server.engine.speculation.drafters.lookup import LookupDrafter, NgramIndex
from server.engine.speculation.drafters.skip import SkipDrafter
from server.engine.speculation.policy import FIRST_GAIN, DraftPolicy
from server.engine.speculation.speculator import Speculator
from tests.batches import read_prompts

FIRST, SECOND = SkipMask(frozenset({1}), frozenset({2})), SkipMask(frozenset({2, 3}), frozenset())
REPEATING, OTHER = [1, 50, 51, 52, 53, 60, 50, 51, 52, 53], [1, 70, 80, 90, 100]

few_ids = st.lists(st.integers(0, 2), max_size=40)


@given(ids=few_ids, limit=st.integers(0, 8), sizes=st.sampled_from([(3, 2), (2,), (4, 3), (1,)]))
def test_a_continuation_follows_the_latest_earlier_occurrence_of_the_longest_suffix(
    ids: list[int], limit: int, sizes: tuple[int, ...]
) -> None:
    index = NgramIndex(sizes)
    index.extend(ids)
    expected: list[int] = []
    for size in sizes:
        ends = [end for end in range(size, len(ids)) if ids[end - size : end] == ids[-size:]]
        if ends:
            expected = ids[ends[-1] : ends[-1] + limit]
            break
    assert index.continuation(ids, limit) == expected


@given(ids=few_ids, cuts=st.lists(st.integers(0, 40), max_size=6))
def test_an_index_extended_step_by_step_equals_one_made_at_once(ids: list[int], cuts: list[int]) -> None:
    grown, whole = NgramIndex((3, 2)), NgramIndex((3, 2))
    for cut in sorted(cuts):
        grown.extend(ids[:cut])
    grown.extend(ids)
    whole.extend(ids)
    assert grown.ends == whole.ends
    assert grown.continuation(ids, 5) == whole.continuation(ids, 5)


class RecordingDecoder(Decoder):
    """Remembers the slots and draft model of every pass."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.passes: list[tuple[list[int], DraftModel]] = []

    def forward(
        self, batch: TokenBatch, cache: KVCache, draft: DraftModel = FULL_MODEL, states: Tensor | None = None
    ) -> Tensor:
        self.passes.append(([slot for slot, _, _ in batch.rows], draft))
        return super().forward(batch, cache, draft, states)


Prefilled = Callable[[list[GenerationRequest]], tuple[Engine, RecordingDecoder, list[Sequence]]]


@pytest.fixture
def prefilled(checkpoint: Checkpoint) -> Prefilled:
    """An engine whose requests stand before their first decode step, with no passes on record."""

    def prepare(requests: list[GenerationRequest]) -> tuple[Engine, RecordingDecoder, list[Sequence]]:
        decoder = RecordingDecoder(checkpoint)
        engine = Engine(decoder, EngineConfig(max_batch=8))
        sequences = [engine.add(request) for request in requests]
        read_prompts(engine)
        decoder.passes.clear()
        return engine, decoder, sequences

    return prepare


def request(prompt: list[int], mask: SkipMask, method: str = "skip", max_tokens: int = 50) -> GenerationRequest:
    return GenerationRequest(
        prompt,
        SamplingParams(),
        StopConditions(max_tokens),
        method=method,
        route=Route("test", DraftModel(mask)),
        max_draft=4,
    )


@pytest.mark.parametrize(("confidence", "expected"), [(0.0, 4), (1.1, 1)])
def test_a_skipping_draft_ends_at_its_limit_or_after_an_unsure_token(
    prefilled: Prefilled, confidence: float, expected: int
) -> None:
    engine, decoder, [sequence] = prefilled([request(OTHER, FIRST)])
    with torch.inference_mode():
        drafts = SkipDrafter(decoder, engine.cache, confidence).propose([sequence], 0.0)
    assert len(drafts[sequence.id]) == expected
    assert len(decoder.passes) == expected


@pytest.mark.parametrize(("max_tokens", "expected"), [(2, 0), (3, 1), (5, 3), (6, 4), (9, 4)])
def test_nothing_is_drafted_that_could_not_be_emitted(prefilled: Prefilled, max_tokens: int, expected: int) -> None:
    """One token came with the prompt, and every verification adds one of its own."""
    engine, decoder, sequences = prefilled([request(OTHER, FIRST, max_tokens=max_tokens)])
    with torch.inference_mode():
        drafts = SkipDrafter(decoder, engine.cache, 0.0).propose(sequences, 0.0)
    assert len(drafts.get(sequences[0].id, [])) == expected
    repeating = sequences[0]
    repeating.ids = [*REPEATING[:5], *REPEATING[:5]]
    repeating.max_ids = len(repeating.ids) + expected + 1
    assert len(LookupDrafter().propose([repeating], 0.0).get(repeating.id, [])) == expected


def test_sequences_of_one_mask_are_drafted_as_one_batch(prefilled: Prefilled) -> None:
    engine, decoder, sequences = prefilled(
        [request(OTHER, FIRST), request(REPEATING, SECOND), request(OTHER, FIRST), request(OTHER, EMPTY_MASK)]
    )
    with torch.inference_mode():
        drafts = SkipDrafter(decoder, engine.cache, 0.0).propose(sequences, 0.0)
    assert decoder.passes == [([0, 2], DraftModel(FIRST))] * 4 + [([1], DraftModel(SECOND))] * 4
    assert set(drafts) == {s.id for s in sequences[:3]}
    assert drafts[sequences[0].id] == drafts[sequences[2].id]


def test_a_sequence_leaves_the_batch_at_its_own_end(prefilled: Prefilled) -> None:
    engine, decoder, sequences = prefilled([request(OTHER, FIRST, max_tokens=3), request(REPEATING, FIRST)])
    with torch.inference_mode():
        drafts = SkipDrafter(decoder, engine.cache, 0.0).propose(sequences, 0.0)
    assert [len(drafts[s.id]) for s in sequences] == [1, 4]
    assert [slots for slots, _ in decoder.passes] == [[0, 1], [1], [1], [1]]


def test_a_draft_ends_with_a_stop_token(prefilled: Prefilled) -> None:
    engine, decoder, [free] = prefilled([request(OTHER, FIRST)])
    with torch.inference_mode():
        first = SkipDrafter(decoder, engine.cache, 0.0).propose([free], 0.0)[free.id][0]
    stopping = GenerationRequest(
        OTHER,
        SamplingParams(),
        StopConditions(50, frozenset({first})),
        route=Route("test", DraftModel(FIRST)),
        max_draft=4,
    )
    engine, decoder, [sequence] = prefilled([stopping])
    with torch.inference_mode():
        assert SkipDrafter(decoder, engine.cache, 0.0).propose([sequence], 0.0) == {sequence.id: [first]}


def test_the_cascade_skips_only_where_lookup_finds_nothing(prefilled: Prefilled) -> None:
    """Method by method: who looks up, who skips, and who is left to decode plainly."""
    methods = ["cascade", "cascade", "lookup", "lookup", "skip", "plain"]
    texts = [REPEATING, OTHER, REPEATING, OTHER, REPEATING, REPEATING]
    engine, decoder, sequences = prefilled([request(p, FIRST, m) for p, m in zip(texts, methods, strict=True)])
    for sequence in sequences:
        sequence.ids = list(sequence.request.prompt_ids)
        sequence.cursor = len(sequence.ids) - 1
    with torch.inference_mode():
        speculator = Speculator([SkipDrafter(decoder, engine.cache, 0.0), LookupDrafter()])
        speculator.allowed["cascade"] = ["lookup", "skip"]
        drafts = speculator.draft(sequences, StepStats())
    assert {slot for slots, _ in decoder.passes for slot in slots} == {1, 4}
    looked_up = [60, 50, 51, 52]
    assert (
        drafts[sequences[0].id]
        == drafts[sequences[2].id]
        == Draft(looked_up, "lookup", kind=sequences[0].route.draft.kind)
    )
    assert drafts[sequences[1].id].drafter == drafts[sequences[4].id].drafter == "skip"
    assert set(drafts) == {sequences[i].id for i in (0, 1, 2, 4)}


def test_what_was_indexed_is_forgotten(prefilled: Prefilled) -> None:
    _, _, sequences = prefilled([request(REPEATING, FIRST), request(OTHER, FIRST)])
    lookup = LookupDrafter()
    lookup.propose(sequences, 0.0)
    lookup.forget(sequences[0])
    lookup.forget(sequences[0])
    assert set(lookup.indexes) == {sequences[1].id}


def test_a_copied_passage_is_looked_up_in_ever_longer_drafts() -> None:
    passage = list(range(10, 60))
    request = GenerationRequest([*passage, 1, *passage[:4]], SamplingParams(), StopConditions(200))
    free = Sequence.of(0, request, "lookup", 4, 500)
    bound = Sequence.of(1, replace(request, max_draft=5), "lookup", 5, 500)
    lookup = LookupDrafter()

    def lengths(one: Sequence, accepted: list[bool]) -> list[int]:
        found = []
        for is_accepted in accepted:
            found.append(len(lookup.propose([one], 0.0)[one.id]))
            lookup.learn(one, Feedback([7], [7 if is_accepted else 8], int(is_accepted)))
        return found

    assert lengths(free, [True, True, True, True, False, True]) == [4, 8, 16, 16, 16, 4]
    assert free.longest_draft == 16
    assert lengths(bound, [True, True, True]) == [5, 5, 5]
    lookup.forget(free)
    lookup.forget(bound)
    assert not lookup.growths


@pytest.mark.parametrize(
    ("emitted", "gain"),
    [([8], 0), ([5, 8], 1), ([5], 2), ([5, 6], 4), ([5, 6, 7, 9], 4), ([5, 6, 7, 9, 1], 4)],
)
def test_what_was_found_is_judged_whether_or_not_it_was_drafted(
    prefilled: Prefilled, emitted: list[int], gain: int
) -> None:
    engine, decoder, [one] = prefilled([request(OTHER, FIRST)])
    policy = DraftPolicy()
    speculator = Speculator([SkipDrafter(decoder, engine.cache, 0.0), LookupDrafter()], policy)
    found = [5, 6, 7, 9]
    speculator.judge("lookup", one, found, emitted)
    assert policy.gain("lookup", one).value == pytest.approx((FIRST_GAIN + gain) / 2, abs=0.6)
    assert policy.gains_of_kinds[one.kind, "lookup"].value == (FIRST_GAIN + gain) / 2
