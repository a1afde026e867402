"""Tokens that are drawn: by the kernels as in torch, after the exact law, from noise that is as good as its source."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest

from server.engine import SamplingParams
from server.engine.model import kernels
from server.engine.sampling.distribution import draw_in_torch, draw_with_confidence, probabilities
from server.engine.sampling.draw import Draw
from server.engine.sampling.noise import exponential_noise, philox
from tests.tiny import CPU

native = pytest.mark.skipif(kernels.library() is None, reason="no kernels for this processor")
ROW = np.dtype(
    [("temperature", "f4"), ("top_p", "f4"), ("min_p", "f4"), ("top_k", "i4"), ("seed", "u8"), ("position", "u8")]
)
CUTS = [
    SamplingParams(1.0),
    SamplingParams(0.4),
    SamplingParams(2.0),
    SamplingParams(1.0, top_k=5),
    SamplingParams(1.0, top_p=0.7),
    SamplingParams(1.0, min_p=0.2),
    SamplingParams(1.3, top_k=20, top_p=0.9, min_p=0.02),
    SamplingParams(1.0, top_p=0.0),
    SamplingParams(1.0, top_k=1),
]


def drawn(
    logits: torch.Tensor, sampling: SamplingParams, seeds: NDArray[np.uint64], positions: NDArray[np.uint64]
) -> NDArray[np.int32]:
    """One token of the same logits [vocabulary] for each seed and position, by the kernels."""
    library = kernels.library()
    assert library is not None
    count = len(seeds)
    rows = np.empty(count, ROW)
    rows["temperature"], rows["top_p"], rows["min_p"] = sampling.temperature, sampling.top_p, sampling.min_p
    rows["top_k"], rows["seed"], rows["position"] = sampling.top_k, seeds, positions
    tokens, tops, repeated = np.empty(count, "i4"), np.empty(count, "f4"), logits.repeat(count, 1)
    size = logits.shape[0]
    addresses = rows.ctypes.data, tokens.ctypes.data, tops.ctypes.data
    library.logits_sample(repeated.data_ptr(), count, size, *addresses)
    return tokens


def test_the_counter_is_philox() -> None:
    """The first answer of Random123's own table, and the halves of the key and of the position in their places."""
    assert [f"{word:08x}" for word in philox(0, 0, torch.tensor([0]))[0].tolist()] == [
        "6627e8d5",
        "e169c58d",
        "bc57ac4c",
        "9b00dbd8",
    ]
    words = {
        tuple(philox(seed, position, torch.tensor([1]))[0].tolist())
        for seed in (0, 1, 2**32)
        for position in (0, 1, 2**32)
    }
    assert len(words) == 9


def test_noise_is_exponential_and_depends_on_seed_and_position_alone() -> None:
    noise = exponential_noise(3, 7, 50_000, CPU)
    assert kstest(noise.numpy(), "expon").pvalue > 1e-3
    assert torch.equal(noise[:50], exponential_noise(3, 7, 50, CPU))
    others = [exponential_noise(seed, position, 50_000, CPU) for seed, position in ((3, 8), (4, 7), (3 + 2**33, 7))]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack((noise, other)))[0, 1])) < 0.02


@native
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([3, 16, 63, 64, 65, 200, 1001]),
    st.floats(0.05, 3),
    st.sampled_from([0, 1, 5, 50, 2000]),
    st.sampled_from([1.0, 0.0, 0.31, 0.87, 0.999]),
    st.sampled_from([0.0, 0.05, 0.3]),
    st.booleans(),
)
def test_the_kernels_draw_what_torch_draws(
    seed: int, size: int, temperature: float, top_k: int, top_p: float, min_p: float, has_ties: bool
) -> None:
    """Also with ties, and with tokens that are forbidden."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, size, generator=generator) * 3
    if has_ties:
        logits = logits.round()
        logits[:, 1::3] = float("-inf")
    sampling = SamplingParams(temperature, top_p, top_k, min_p)
    draws = [Draw(sampling, seed, i) for i in range(3)] + [Draw(SamplingParams(), 0, 0)]
    tokens, tops = draw_with_confidence(logits, draws)
    expected = draw_in_torch(logits, draws)
    assert tokens == expected[0]
    assert tops == pytest.approx(expected[1], rel=1e-4)


@native
@pytest.mark.parametrize("sampling", CUTS, ids=str)
@pytest.mark.parametrize("size", [7, 300])
def test_draws_follow_the_exact_law(sampling: SamplingParams, size: int) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size)) * 2
    count = 50_000
    tokens = drawn(logits, sampling, np.arange(count, dtype="u8"), np.full(count, 9, "u8"))
    check_law(logits, sampling, tokens, 1e-4)


def check_law(logits: torch.Tensor, sampling: SamplingParams, tokens: NDArray[np.int32], least: float) -> None:
    """Chi-square over all tokens; those that are expected less than ten times count as one."""
    law = probabilities(logits[None].double(), sampling)[0].numpy()
    counts = np.bincount(tokens, minlength=len(law)).astype(float)
    assert counts[law == 0].sum() == 0
    common = law * len(tokens) >= 10
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(law[common], law[~common].sum()) * len(tokens)
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert len(observed) == 1 or chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > least


@native
def test_a_million_draws_follow_the_law_and_noise_that_repeats_is_noticed() -> None:
    """Seeds and positions both vary; with one noise in four for all the same test fails."""
    logits, sampling = torch.randn(130, generator=torch.Generator().manual_seed(4)), SamplingParams(1.0)
    seeds, positions = (part.astype("u8").ravel() for part in np.mgrid[0:1000, 0:1000])
    check_law(logits, sampling, drawn(logits, sampling, seeds, positions), 1e-4)
    with pytest.raises(AssertionError):
        check_law(logits, sampling, drawn(logits, sampling, seeds // 500, positions // 500), 1e-4)


@native
def test_a_draw_of_a_large_vocabulary_is_that_of_its_parts() -> None:
    """Whatever is left out before its noise is made could not have won."""
    logits = torch.randn(8, 151_936, generator=torch.Generator().manual_seed(0))
    for temperature in (0.2, 0.7, 1.0, 3.0):
        draws = [Draw(SamplingParams(temperature), 77, position) for position in range(8)]
        assert draw_with_confidence(logits, draws)[0] == draw_in_torch(logits, draws)[0]


@native
@pytest.mark.parametrize("temperature", [1e-40, 1e-6])
def test_a_tiny_temperature_is_the_likeliest_token(temperature: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.999]])
    tokens, tops = draw_with_confidence(logits, [Draw(SamplingParams(temperature), 0, 0)])
    assert tokens == [1] and tops == pytest.approx(logits.softmax(-1).amax(-1).tolist())
