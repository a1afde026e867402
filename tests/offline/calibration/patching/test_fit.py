"""Least squares finds a planted map, gradient steps follow the model's choices, large patches become two factors."""

import pytest
import torch

from offline.calibration.patching import places as places_module
from offline.calibration.patching.fit import Judge, Linear, factored, improved, least_squares
from offline.calibration.patching.places import Places
from tests.tiny import CPU

SIZE, COUNT = 12, 600


def planted(noise: float = 0.0, nonlinear: float = 0.0, seed: int = 0) -> tuple[Places, Linear]:
    """Places of a linear map, of which the answers are the second half; its inputs differ in scale."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIZE, 2 * SIZE, generator=torch.Generator().manual_seed(9))
    bias = torch.arange(SIZE) / 10
    inputs = torch.randn(COUNT, 2 * SIZE, generator=generator) * torch.logspace(-1, 1, 2 * SIZE)
    states = inputs @ weight.T + bias
    states = states + noise * torch.randn(COUNT, SIZE, generator=generator) + nonlinear * states.sin()
    return Places(inputs, states, torch.arange(COUNT) >= COUNT // 2), Linear(weight, bias)


def head(tokens: int = 40) -> torch.Tensor:
    return torch.randn(tokens, SIZE, generator=torch.Generator().manual_seed(5), device=CPU)


def test_least_squares_finds_the_map() -> None:
    places, map_ = planted()
    found = least_squares(places)
    error = (found(places.inputs) - places.states).square().mean() / places.states.square().mean()
    assert float(error) < 1e-3, "the ridge shrinks a little"
    torch.testing.assert_close(found.weight, map_.weight, rtol=0.05, atol=0.2)
    assert Judge(places, head()).agreement(found) > 0.97


def test_places_of_answers_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here prompts say the opposite of answers, and as much as they where all places count the same."""
    places, _ = planted()
    twisted = torch.where(places.is_answer[:, None], places.states, -places.states)
    judge = Judge(Places(places.inputs, twisted, places.is_answer), head())
    assert judge.agreement(least_squares(judge.places)) > 0.6
    monkeypatch.setattr(places_module, "ANSWER_WEIGHT", 1.0)
    assert judge.agreement(least_squares(judge.places)) < 0.4


def test_gradient_steps_are_kept_as_long_as_they_help() -> None:
    places, _ = planted(noise=1.0, nonlinear=4.0)
    apart, _ = planted(noise=1.0, nonlinear=4.0, seed=1)
    start, judge = least_squares(places), Judge(apart, head())
    best, agreements = improved(start, places, judge, seed=0)
    assert len(agreements) >= 2
    assert agreements[0] == judge.agreement(start)
    assert judge.agreement(best) == max(agreements)
    assert (best, agreements) != (start, agreements[:1])
    again, same = improved(start, places, judge, seed=0)
    assert same == agreements and torch.equal(again.weight, best.weight)


def test_steps_that_do_not_help_are_not_taken() -> None:
    places, _ = planted()
    start = least_squares(places)
    best, agreements = improved(start, places, Judge(places, head(1)), seed=0)
    assert best is start and agreements == [1.0, 1.0]


@pytest.mark.parametrize(("most", "rank"), [(2 * SIZE * SIZE, None), (6 * 3 * SIZE, 6), (2, 1)])
def test_a_large_weight_becomes_two_factors(most: int, rank: int | None) -> None:
    places, _ = planted()
    low = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(1))
    weight = low @ torch.randn(3, 2 * SIZE, generator=torch.Generator().manual_seed(2))
    factors = factored(weight, places.inputs, most)
    assert [factor.shape for factor in factors] == (
        [(SIZE, 2 * SIZE)] if rank is None else [(SIZE, rank), (rank, 2 * SIZE)]
    )
    product = factors[0] if rank is None else factors[0] @ factors[1]
    if rank != 1:
        torch.testing.assert_close(product, weight, rtol=1e-3, atol=1e-3)
