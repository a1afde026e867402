"""Which masks to try: simple rules, local changes, and Bayesian optimisation near the best mask so far.

Everything here is generic over a function from masks to scores, and deterministic for a seed.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import UpperConfidenceBound
from bayes_opt.target_space import TargetSpace
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from server.engine import FULL, SkipMask

ScoreMask = Callable[[SkipMask], float]

EXPECTED_FLIPS = 3
"""Sub-layers that a random Bayesian sample changes on average: further away, hardly any mask is good."""
NUM_REGISTERED = 60
NUM_SAMPLES = 2000
KAPPA = 1.0


def prefix_masks(num_layers: int) -> list[SkipMask]:
    """All masks that skip every sub-layer from some layer on: early exits."""
    return [SkipMask(*[frozenset(range(first, num_layers))] * 2) for first in range(1, num_layers)]


def rule_masks(num_layers: int) -> list[SkipMask]:
    """The starting points: no skipping, early exits, and every other layer."""
    odd, inner = frozenset(range(1, num_layers, 2)), frozenset(range(1, num_layers - 1))
    none: frozenset[int] = frozenset()
    others = [SkipMask(odd, odd), SkipMask(odd & inner, odd & inner), SkipMask(odd, none), SkipMask(inner, none)]
    return list(dict.fromkeys([FULL, *prefix_masks(num_layers), *others]))


def flipped(mask: SkipMask, places: set[int], num_layers: int) -> SkipMask:
    """The mask with these sub-layers changed over; place i is attention i, place num_layers + i is MLP i."""
    attention = mask.attention ^ {place for place in places if place < num_layers}
    return SkipMask(attention, mask.mlp ^ {place - num_layers for place in places if place >= num_layers})


def climb(start: SkipMask, score: ScoreMask, num_layers: int, allowance: int, seed: int) -> SkipMask:
    """Hill climbing by single flips in random order, by random pairs where no single flip helps any more."""
    chance = random.Random(seed)
    best, best_score = start, score(start)
    neighbours = single_flips(num_layers, chance)
    pairs_left = 2 * num_layers
    for _ in range(allowance):
        places = next(neighbours, None)
        if places is None:
            if pairs_left == 0:
                break
            pairs_left -= 1
            places = set(chance.sample(range(2 * num_layers), 2))
        candidate = flipped(best, places, num_layers)
        candidate_score = score(candidate)
        if candidate_score > best_score:
            best, best_score = candidate, candidate_score
            neighbours, pairs_left = single_flips(num_layers, chance), 2 * num_layers
    return best


def single_flips(num_layers: int, chance: random.Random) -> Iterator[set[int]]:
    places = list(range(2 * num_layers))
    chance.shuffle(places)
    return ({place} for place in places)


class FlipSpace:
    """Masks near a centre mask as points of a box: a coordinate above 0.5 skips its sub-layer.

    The box reaches past 0.5 just far enough that a random point flips `EXPECTED_FLIPS` of the centre.
    """

    def __init__(self, centre: SkipMask, num_layers: int) -> None:
        self.num_layers = num_layers
        share = min(EXPECTED_FLIPS / (2 * num_layers), 0.5)
        self.reach = 0.5 * share / (1 - share)
        skipped = self.bits(centre)
        self.bounds = {
            f"{place:04d}": (0.5 - self.reach, 1.0) if skip else (0.0, 0.5 + self.reach)
            for place, skip in enumerate(skipped)
        }

    def bits(self, mask: SkipMask) -> list[bool]:
        layers = range(self.num_layers)
        return [i in mask.attention for i in layers] + [i in mask.mlp for i in layers]

    def point(self, mask: SkipMask) -> dict[str, float]:
        """The middle of the mask's part of the box."""
        return {
            name: (0.5 + high) / 2 if skip else (low + 0.5) / 2
            for (name, (low, high)), skip in zip(self.bounds.items(), self.bits(mask), strict=True)
        }

    def mask(self, point: dict[str, float]) -> SkipMask:
        skipped = [int(name) for name, value in point.items() if value > 0.5]
        return flipped(FULL, set(skipped), self.num_layers)


class SampledBound(UpperConfidenceBound):
    """Upper confidence bound, maximised over random points of the box.

    The default goes on with gradients, which takes seconds a proposal in this many dimensions and
    cannot see a function that is constant between thresholds.
    """

    def suggest(
        self,
        gp: GaussianProcessRegressor,
        target_space: TargetSpace,
        n_random: int = NUM_SAMPLES,
        n_smart: int = 0,
        fit_gp: bool = True,
        random_state: int | RandomState | None = None,
    ) -> NDArray[np.floating[Any]]:
        return super().suggest(gp, target_space, NUM_SAMPLES, 0, fit_gp, random_state)


def optimise(known: dict[SkipMask, float], score: ScoreMask, num_layers: int, allowance: int, seed: int) -> None:
    """Bayesian optimisation around the best of `known`, warm-started with the best masks and scores there.

    The kernel is fixed: refitting its length at every step costs more than scoring a mask.
    """
    if allowance == 0:
        return
    ranked = sorted(known, key=lambda mask: -known[mask])[:NUM_REGISTERED]
    space = FlipSpace(ranked[0], num_layers)
    optimiser = BayesianOptimization(
        f=None,
        pbounds=space.bounds,
        acquisition_function=SampledBound(kappa=KAPPA),
        random_state=seed,
        verbose=0,
        allow_duplicate_points=True,
    )
    optimiser.set_gp_params(kernel=Matern(length_scale=1.0, nu=2.5), optimizer=None, alpha=1e-4)
    for mask in ranked:
        optimiser.register(space.point(mask), known[mask])
    for _ in range(allowance):
        point = {name: float(value) for name, value in optimiser.suggest().items()}
        optimiser.register(point, score(space.mask(point)))
