"""Log-probabilities are the model's own, whatever was drafted, adjusted or sampled."""

import random

import pytest
import torch

from server.engine import (
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
    TokenBatch,
    TokenLogprobs,
    methods,
)

MASK = SkipMask(frozenset({1}), frozenset({2}))
PROMPT = [1, *random.Random(3).choices(range(6, 262), k=40)]
ADJUSTED = SamplingParams(1.5, seed=3, adjustments=Adjustments(((70, 5.0),), 1.3, 0.5, 0.5))


def reference(model: Decoder, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [ids, vocabulary] of what follows each id, in one full pass."""
    cache = model.new_cache(1, len(ids))
    with torch.inference_mode():
        return model.logits(model.forward(TokenBatch([(0, 0, ids)], cache), cache)).log_softmax(-1)


def run(model: Decoder, request: GenerationRequest) -> tuple[list[int], list[TokenLogprobs], list[TokenLogprobs]]:
    """Output ids, their log-probabilities, and those of the prompt."""
    engine = Engine(model, EngineConfig(max_batch=2, confidence=0.0, prefill_chunk=7))
    sequence = engine.add(request)
    scores = []
    while engine.has_work:
        for emission in engine.step()[0]:
            assert len(emission.logprobs) in (0, len(emission.token_ids))
            scores += emission.logprobs
    return sequence.output_ids, scores, sequence.prompt_logprobs


@pytest.mark.parametrize("method", list(methods()))
@pytest.mark.parametrize("sampling", [SamplingParams(), ADJUSTED], ids=["greedy", "adjusted"])
def test_scores_are_those_of_a_full_pass(model: Decoder, method: str, sampling: SamplingParams) -> None:
    request = GenerationRequest(PROMPT, sampling, StopConditions(20), method, Route("t", DraftModel(MASK)), 5, 4, True)
    output, scores, prompt_scores = run(model, request)
    expected = reference(model, PROMPT + output)
    everything = prompt_scores + scores
    assert [score.token_id for score in everything] == PROMPT + output
    assert everything[0] == TokenLogprobs(PROMPT[0], None)
    for row, score in zip(expected, everything[1:], strict=False):
        assert score.logprob == pytest.approx(row[score.token_id].item(), abs=1e-4)
        assert [value for _, value in score.top] == pytest.approx(row.topk(4).values.tolist(), abs=1e-4)
        assert [row[token].item() for token, _ in score.top] == pytest.approx([v for _, v in score.top], abs=1e-4)
        assert sampling.is_greedy is False or score in prompt_scores or score.top[0][0] == score.token_id


def test_only_what_is_asked_for_is_reported(model: Decoder) -> None:
    request = GenerationRequest(PROMPT, SamplingParams(), StopConditions(4), "skip", Route("t", DraftModel(MASK)))
    output, scores, prompt_scores = run(model, request)
    assert output and not scores and not prompt_scores
    request = GenerationRequest(PROMPT, SamplingParams(), StopConditions(4), num_logprobs=0)
    output, scores, prompt_scores = run(model, request)
    assert [score.token_id for score in scores] == output
    assert all(score.top == () for score in scores) and not prompt_scores
