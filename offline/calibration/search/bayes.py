"""Bayesian optimisation of masks: rounds of proposals by a Gaussian process in a box around the best mask so far."""

from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
from bayes_opt import BayesianOptimization
from bayes_opt.acquisition import UpperConfidenceBound
from bayes_opt.target_space import TargetSpace
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from offline.calibration.search.initial_masks import flipped
from server.engine import EMPTY_MASK, SkipMask

EXPECTED_FLIPS = 3
"""Sub-layers that a random sample of the box changes on average: further away, hardly any mask is good."""
NUM_REGISTERED = 60
NUM_SAMPLES = 2000
KAPPA = 1.0
ROUND = 30
"""Proposals in one box."""


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
        return flipped(EMPTY_MASK, set(skipped), self.num_layers)


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


def bayesian(known: Mapping[SkipMask, float], num_layers: int, seed: int) -> Generator[SkipMask, float, None]:
    """Rounds around the best of `known`, each warm-started with the best masks and scores there.

    The kernel is fixed: refitting its length at every step costs more than scoring a mask.
    """
    while True:
        ranked = sorted(known, key=lambda mask: -known[mask])[:NUM_REGISTERED] or [EMPTY_MASK]
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
            optimiser.register(space.point(mask), known.get(mask, 1.0))
        for _ in range(ROUND):
            point = {name: float(value) for name, value in optimiser.suggest().items()}
            optimiser.register(point, (yield space.mask(point)))
        seed += 1
