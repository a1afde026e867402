"""The processed distribution, and that what is sampled follows it."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.logits_process import MinPLogitsWarper

from server.engine import (
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
    add_draft,
    load_checkpoint,
)
from server.engine.model import kernels
from server.engine.sampling.distribution import draw_tokens, draw_with_confidence, probabilities
from server.engine.sampling.draw import Draw
from server.engine.speculation.verification import Verification
from tests.tiny import CPU, save_random_model, tiny_config

DRAWS = 2000


@given(
    st.integers(0, 2**32 - 1),
    st.floats(0.1, 3),
    st.sampled_from([0, 1, 5, 50]),
    st.floats(0.05, 1),
    st.sampled_from([0.0, 0.05, 0.3]),
)
def test_probabilities_equal_transformers_processors(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(2, 40, generator=torch.Generator().manual_seed(seed)) * 3
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    if min_p:
        scores = MinPLogitsWarper(min_p)(None, scores)
    expected = scores.softmax(-1)
    actual = probabilities(logits, SamplingParams(temperature, top_p, top_k, min_p))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


def test_greedy_and_sampled_rows_share_a_batch() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    sampled = SamplingParams(temperature=1.0)
    draws = [Draw(SamplingParams(), 0, 5), Draw(sampled, 9, 5), Draw(sampled, 9, 6)]
    together = draw_tokens(logits, draws)
    assert together == [draw_tokens(logits[i : i + 1], [draw])[0] for i, draw in enumerate(draws)]
    assert together[0] == int(logits[0].argmax())
    tokens, tops = draw_with_confidence(logits, draws)
    assert tokens == together
    assert tops == pytest.approx(logits.softmax(-1).max(-1).values.tolist())


def test_a_greedy_row_is_the_argmax_in_any_company() -> None:
    """Logits one rounding step apart have equal probabilities."""
    low = torch.tensor(0.1)
    logits = torch.stack((low, torch.nextafter(low, torch.tensor(1.0))))[None]
    greedy, sampled = Draw(SamplingParams(), 0, 0), Draw(SamplingParams(1.0), 0, 0)
    assert draw_tokens(logits, [greedy]) == draw_tokens(logits.repeat(2, 1), [greedy, sampled])[:1] == [1]


def test_a_tiny_temperature_is_nearly_greedy() -> None:
    logits, coldest = torch.tensor([[0.0, 3.0, 1.0]]), SamplingParams(1e-40)
    assert probabilities(logits, coldest).isfinite().all()
    assert draw_tokens(logits, [Draw(coldest, 0, 0)]) == [1]


def second_tokens(model: Decoder, method: str, mask: SkipMask, prompt: list[int], first: int) -> np.ndarray:
    """Counts of the second token over many seeds, among texts whose first token is `first`."""
    engine = Engine(model, EngineConfig(max_batch=64, confidence=0.0, baseline_share=0, is_adaptive=False))
    sampling = [SamplingParams(1.0, top_k=6, seed=seed) for seed in range(DRAWS)]
    requests = [
        GenerationRequest(prompt, s, StopConditions(3), method=method, route=Route("t", DraftModel(mask)), max_draft=2)
        for s in sampling
    ]
    counts = np.zeros(model.config.vocabulary_size)
    for sequence in engine.generate(requests):
        if sequence.output_ids[0] == first:
            counts[sequence.output_ids[1]] += 1
    return counts


@pytest.fixture(scope="module")
def model_with_copy(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A model of few bits that the kernels run, with a copy in 4 bits."""
    if kernels.build() is None:
        pytest.skip("no kernels for this processor")
    folder = save_random_model(tmp_path_factory.mktemp("small"), tiny_config(head_dim=16))
    checkpoint = load_checkpoint(str(folder), torch.bfloat16, CPU, quantization="int8")
    model = Decoder(checkpoint)
    add_draft(model, checkpoint, "int4")
    return model


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize(("fixture", "method"), [("model", "skip"), ("model_with_copy", "low-bit")])
def test_speculatively_sampled_tokens_follow_the_plain_distribution(
    fixture: str, method: str, is_broken: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chi-square test with the power to fail: with a verification that accepts everything it does."""
    model: Decoder = request.getfixturevalue(fixture)
    prompt = [1, 4, 70, 80, 90]
    with torch.inference_mode():
        engine = Engine(model, EngineConfig(max_batch=1))
        first = engine.generate([GenerationRequest(prompt, SamplingParams(), StopConditions(1))])[0].output_ids[0]
        expected = exact_second_distribution(model, [*prompt, first])
    if is_broken:

        def accept_all(drafted: list[int], own: list[int], stop: frozenset[int], room: int) -> Verification:
            return Verification([*drafted, own[-1]][:room], len(drafted), len(drafted))

        monkeypatch.setattr("server.engine.engine.verify", accept_all)
    counts = second_tokens(model, method, SkipMask(frozenset({0, 2}), frozenset({1})), prompt, first)
    support = expected > 0
    outside = counts[~support].sum()
    shares = expected[support] / expected[support].sum()
    p_value = 0.0 if outside else chisquare(counts[support], shares * counts.sum()).pvalue
    assert counts.sum() > 200
    assert (p_value < 1e-6) if is_broken else (p_value > 1e-3)


def exact_second_distribution(model: Decoder, ids: list[int]) -> np.ndarray:
    cache = model.new_cache(1, 32)
    logits = model.logits(model.forward(TokenBatch([(0, 0, ids)], cache), cache)[-1:])
    return probabilities(logits, SamplingParams(1.0, top_k=6))[0].double().numpy()
