"""Bias, penalties and minimum lengths: what they do to logits, and that drafts never change what they yield."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, RepetitionPenaltyLogitsProcessor

from server.engine import (
    UNADJUSTED,
    Adjustments,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    SamplingParams,
    SkipMask,
    StopConditions,
)
from server.engine.sampling.logits_processor import LogitsProcessor, penalize_counts, penalize_repetition
from server.engine.sampling.sampler import adjusted
from server.engine.sequence import Sequence

SIZE = 20
ADJUSTMENTS = {
    "bias": Adjustments(logit_bias=((70, 4.0), (90, 6.0), (2, -100.0))),
    "repetition": Adjustments(repetition_penalty=1.8),
    "repetition-wanted": Adjustments(repetition_penalty=0.7),
    "presence": Adjustments(presence_penalty=2.0),
    "frequency": Adjustments(frequency_penalty=1.5),
    "frequency-wanted": Adjustments(frequency_penalty=-2.0),
    "all": Adjustments(((70, 9.0), (80, 9.0)), 1.2, 1.0, 0.5),
}
SAMPLINGS = [SamplingParams(), SamplingParams(1.0, top_p=0.9, seed=5), SamplingParams(0.8, min_p=0.05, seed=6)]
tokens = st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=12)


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, SIZE, generator=torch.Generator().manual_seed(seed)) * 4


@given(tokens, st.floats(0.1, 5), st.integers(0, 1000))
def test_repetition_equals_transformers_processor(ids: list[int], penalty: float, seed: int) -> None:
    logits = random_logits(1, seed)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits.clone())
    is_seen = torch.zeros(1, SIZE, dtype=torch.bool)
    is_seen[0, ids] = True
    penalize_repetition(logits, is_seen, penalty)
    assert torch.equal(logits, expected)


@given(tokens, st.floats(-2, 2), st.floats(-2, 2))
def test_counts_follow_openais_formula(ids: list[int], frequency: float, presence: float) -> None:
    logits = random_logits(1)
    expected = [x - ids.count(i) * frequency - (ids.count(i) > 0) * presence for i, x in enumerate(logits[0].tolist())]
    penalize_counts(logits, torch.bincount(torch.tensor(ids), minlength=SIZE)[None].float(), frequency, presence)
    assert logits[0].tolist() == pytest.approx(expected, abs=1e-4)


@given(tokens, tokens, tokens, st.integers(0, 8))
def test_rows_are_adjusted_by_exactly_what_stands_before_them(
    prompt: list[int], output: list[int], drafted: list[int], min_tokens: int
) -> None:
    """Several rows at once equal one row at a time, with the drafted tokens as if they had been emitted."""
    asked = Adjustments(((3, 2.0),), 1.3, 0.5, 0.25)
    stop = StopConditions(99, frozenset({1, 4, SIZE + 5}), min_tokens)
    logits = random_logits(len(drafted) + 1)
    together = logits.clone()
    LogitsProcessor(asked, stop, len(prompt)).adjust(together, prompt + output, drafted)
    growing = LogitsProcessor(asked, stop, len(prompt))
    for i in range(len(drafted) + 1):
        emitted, as_draft = logits[i : i + 1].clone(), logits[i : i + 1].clone()
        growing.adjust(emitted, prompt + output + drafted[:i], [])
        LogitsProcessor(asked, stop, len(prompt)).adjust(as_draft, prompt + output, drafted[:i])
        assert torch.equal(together[i : i + 1], emitted)
        assert torch.equal(emitted, as_draft)
        assert (emitted[0, 1].item() == float("-inf")) == (len(output) + i < min_tokens)


def sequence_of(sampling: SamplingParams, min_tokens: int = 0) -> Sequence:
    request = GenerationRequest([1, 5], sampling, StopConditions(9, frozenset({2}), min_tokens))
    return Sequence.of(0, request, "plain", 4, 99)


def test_logits_are_left_alone_where_nothing_is_asked() -> None:
    logits = random_logits(4)
    before = logits.clone()
    plain, biased = sequence_of(SamplingParams()), sequence_of(SamplingParams(adjustments=ADJUSTMENTS["repetition"]))
    assert adjusted(logits, [plain.span([7], 2), plain.span([], 1)]) is logits
    mixed = adjusted(logits, [plain.span([7], 2), biased.span([7], 2)])
    assert torch.equal(mixed[:2], logits[:2])
    assert not torch.equal(mixed[2:], logits[2:])
    assert torch.equal(logits, before)
    assert sequence_of(SamplingParams(), min_tokens=1).processor


def prompts(count: int) -> list[list[int]]:
    """Prompts that say everything twice, so that prompt lookup finds something to draft."""
    rng = random.Random(4)
    texts = [[rng.randrange(6, 262) for _ in range(rng.randrange(4, 20))] for _ in range(count)]
    return [[1, *text, *text] for text in texts]


def random_route(rng: random.Random) -> Route:
    def part() -> frozenset[int]:
        return frozenset(i for i in range(4) if rng.random() < 0.4)

    return Route("test", DraftModel(SkipMask(part() | {1}, part())))


def run_all(model: Decoder, asked: list[GenerationRequest], max_batch: int) -> list[Any]:
    return Engine(model, EngineConfig(max_batch=max_batch, confidence=0.0, prefill_chunk=9)).generate(asked)


def check_lossless(model: Decoder, sampling: SamplingParams, stop: StopConditions) -> list[list[int]]:
    """Any mask and method in a batch yields what plain decoding yields alone; returns that."""
    rng = random.Random(9)
    plain = [GenerationRequest(ids, sampling, stop, "plain") for ids in prompts(8)]
    alone = [sequence.output_ids for one in plain for sequence in run_all(model, [one], 1)]
    for method in ("skip", "lookup", "cascade"):
        asked = [replace(one, method=method, route=random_route(rng), max_draft=5) for one in plain]
        together = run_all(model, asked, 8)
        assert [sequence.output_ids for sequence in together] == alone
        assert method == "lookup" or sum(sequence.stats.num_drafted for sequence in together)
    return alone


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "min-p"])
@pytest.mark.parametrize("name", ADJUSTMENTS)
def test_adjustments_are_lossless_under_speculation(model: Decoder, name: str, sampling: SamplingParams) -> None:
    stop = StopConditions(24, frozenset({2}))
    outputs = check_lossless(model, replace(sampling, adjustments=ADJUSTMENTS[name]), stop)
    plain = [GenerationRequest(ids, sampling, stop, "plain") for ids in prompts(8)]
    assert outputs != [sequence.output_ids for sequence in run_all(model, plain, 8)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top-p", "min-p"])
def test_minimum_lengths_are_lossless_under_speculation(model: Decoder, sampling: SamplingParams) -> None:
    ends = frozenset(range(2, 200, 3))
    adjustments = Adjustments(presence_penalty=0.5)
    for asked in (UNADJUSTED, adjustments):
        outputs = check_lossless(model, replace(sampling, adjustments=asked), StopConditions(24, ends, 10))
        assert all(len(ids) > 10 and not ends.intersection(ids[:10]) for ids in outputs)
        assert any(ids[-1] in ends for ids in outputs)


@pytest.mark.parametrize("mask", [SkipMask(), SkipMask(frozenset({1, 3}), frozenset({2}))])
def test_greedy_with_processors_equals_transformers(model: Decoder, tiny_checkpoint: Path, mask: SkipMask) -> None:
    reference = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    bias = {70: 3.0, 2: 5.0, 90: -4.0}
    sampling = SamplingParams(adjustments=Adjustments(tuple(bias.items()), repetition_penalty=1.3))
    for prompt in prompts(4):
        ids = torch.tensor([prompt])
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=30,
            min_new_tokens=12,
            repetition_penalty=1.3,
            sequence_bias={(token,): value for token, value in bias.items()},
            pad_token_id=0,
        )
        stop = StopConditions(30, frozenset({2}), 12)
        asked = GenerationRequest(prompt, sampling, stop, "cascade", Route("test", DraftModel(mask)), 5)
        assert run_all(model, [asked], 1)[0].output_ids == out[0, len(prompt) :].tolist()


def test_a_bias_of_an_unknown_token_is_refused(model: Decoder) -> None:
    sampling = SamplingParams(adjustments=Adjustments(((262, 1.0),)))
    with pytest.raises(ValueError, match="between 0 and 261"):
        Engine(model, EngineConfig()).add(GenerationRequest([1], sampling, StopConditions(1)))
