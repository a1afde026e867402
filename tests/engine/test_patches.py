"""Drafts in which a matrix takes the place of the last layers: they begin at the model's state, and change no text."""

import random
from dataclasses import replace

import pytest
import torch

from server.engine import (
    Decoder,
    DraftModel,
    DraftVocabulary,
    Engine,
    EngineConfig,
    GenerationRequest,
    Patch,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StepStats,
    StopConditions,
    TokenBatch,
)
from server.engine.speculation.base import Draft
from server.engine.speculation.speculator import Speculator
from tests.batches import Models, greedy_chains, random_patch

STOP = StopConditions(40, frozenset({2}))
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(),
    SamplingParams(0.8, top_p=0.95, seed=5),
    SamplingParams(1.2, top_k=20, seed=6),
]
VOCABULARY = DraftVocabulary(tuple(random.Random(1).sample(range(262), 60)))


def prompt(number: int) -> list[int]:
    words = random.Random(number).choices(range(6, 262), k=9 + 3 * number)
    return [1, *words, *words]


def asked(number: int, draft: DraftModel, method: str = "skip") -> GenerationRequest:
    sampling = SAMPLINGS[number % len(SAMPLINGS)]
    return GenerationRequest(prompt(number), sampling, STOP, method, Route("test", draft), max_draft=5)


def new_engine(model: Decoder, max_batch: int) -> Engine:
    return Engine(model, EngineConfig(max_batch, confidence=0.0, is_adaptive=False, baseline_share=0))


def drafts_of(model: Decoder) -> list[DraftModel]:
    """Patches from every depth, alone and beside masks, vocabularies and fewer bits."""
    first, middle, last = (random_patch(model, start, seed=start) for start in (0, 1, 3))
    drafts = [
        DraftModel(patch=first),
        DraftModel(vocabulary=VOCABULARY, patch=first, floor=0.15),
        DraftModel(SkipMask(frozenset({0}), frozenset({1})), VOCABULARY, patch=last),
        DraftModel(patch=middle),
        DraftModel(SkipMask(frozenset({1}))),
    ]
    if model.low_bit:
        drafts[3] = DraftModel(is_low_bit=True, patch=middle)
    return drafts


@pytest.mark.parametrize("name", ["torch", "float32", "bfloat16", "bfloat16 int4"])
def test_patched_drafts_share_a_batch_with_others_and_write_the_plain_text(models: Models, name: str) -> None:
    model = models(name)
    drafts = drafts_of(model)
    for method in ("skip", "cascade"):
        # Two and two of one draft model and sampling, so that some pairs are drafted by the kernels alone.
        requests = [replace(asked(i // 2, drafts[i // 2 % 5], method), prompt_ids=prompt(i)) for i in range(10)]
        sequences = new_engine(model, 8).generate(requests)
        for sequence, request in zip(sequences, requests, strict=True):
            (plain,) = new_engine(model, 1).generate([replace(request, method="plain", route=None)])
            assert sequence.output_ids == plain.output_ids
            assert sequence.stats.num_drafted > 0


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize("name", ["torch", "float32"])
@torch.inference_mode()
def test_a_draft_starts_at_the_state_that_the_last_token_came_from(
    models: Models, name: str, start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a prompt, after rejected tokens and after accepted ones, greedy and drawn."""
    model = models(name)
    draft = DraftModel(patch=random_patch(model, start))
    propose, seen = Speculator.draft, set()

    def checked(self: Speculator, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        drafts = propose(self, sequences, stats)
        for sequence in sequences:
            seen.add(sequence.id)
            cache = model.new_cache(1, len(sequence.ids) + 8)
            state = model.forward(TokenBatch([(0, 0, sequence.ids[:-1])], cache), cache)[-1]
            torch.testing.assert_close(sequence.last_state, state, rtol=1e-4, atol=1e-4)
            ids = drafts[sequence.id].ids if sequence.id in drafts else []
            if ids and sequence.request.sampling.is_greedy:
                step = TokenBatch([(0, len(sequence.ids) - 1, sequence.ids[-1:])], cache)
                limits = [len(ids)]
                assert [ids] == greedy_chains(model, draft, model, cache, step, limits, 0.0, state[None])
        return drafts

    monkeypatch.setattr(Speculator, "draft", checked)
    engine = new_engine(model, 3)
    engine.generate([asked(i, draft) for i in range(3)])
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["torch", "float32"])
def test_a_patch_that_knows_the_next_state_is_accepted_whole(models: Models, name: str) -> None:
    """One that hands the state on unchanged, over one token: whatever the model writes, it is that token."""
    model = models(name)
    size = model.config.hidden_size
    same = Patch(0, (torch.cat((torch.zeros(size, size), torch.eye(size)), 1),), torch.zeros(size))
    only = DraftModel(vocabulary=DraftVocabulary((77,)), patch=same)
    biased = SamplingParams(adjustments=replace(SAMPLINGS[0].adjustments, logit_bias=((77, 100.0),)))
    request = replace(asked(0, only), sampling=biased)
    (sequence,) = new_engine(model, 1).generate([request])
    assert set(sequence.output_ids) == {77}
    assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


@pytest.mark.parametrize("name", ["torch", "float32"])
@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(0.9, seed=3)])
def test_a_token_under_the_floor_is_not_drafted(
    models: Models, name: str, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it would have drafted a draft keeps what comes before its first such token."""
    model = models(name)
    free = DraftModel(patch=random_patch(model, 1))

    def proposals(floor: float) -> list[list[int]]:
        engine, found = new_engine(model, 1), []
        propose = Speculator.draft

        def recorded(self: Speculator, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
            drafts = propose(self, sequences, stats)
            found.append(drafts[sequences[0].id].ids if sequences[0].id in drafts else [])
            return {}

        with monkeypatch.context() as patch:
            patch.setattr(Speculator, "draft", recorded)
            engine.generate([replace(asked(0, replace(free, floor=floor)), sampling=sampling)])
        return found

    whole, kept, none = (proposals(floor) for floor in (0.0, 0.15, 1.0))
    assert [long[: len(short)] for long, short in zip(whole, kept, strict=True)] == kept
    assert sum(map(len, whole)) > sum(map(len, kept)) > 0
    assert not any(none)
