"""Which masks to try next: random, greedy, evolutionary and Bayesian proposals.

A strategy is an endless generator: it yields a mask, is sent that mask's score, and reads what was
scored before in `known`. It is deterministic for a seed. `explore` runs one within a budget.
"""

import random
from collections.abc import Callable, Generator, Mapping
from itertools import chain
from math import ceil

from offline.calibration.search.bayes import bayesian
from offline.calibration.search.initial_masks import flipped
from offline.calibration.search.trials import MaskTrials
from server.engine import EMPTY_MASK, SkipMask

Proposals = Generator[SkipMask, float, None]
Known = Mapping[SkipMask, float]
Strategy = Callable[[Known, int, int], Proposals]

KICK = 4
"""Sub-layers that a new ascent changes in the best mask."""
POPULATION = 16
TOURNAMENT = 3
IDLE_SHARE = 1 / 3
"""Share of a search's budget that may go by without a better mask."""
PATIENCE = 50
"""Proposals in a row that bring no new mask, after which there is nothing left to try."""


def explore(strategy: Strategy, trials: MaskTrials, num_layers: int, budget: int, seed: int) -> None:
    """Scores at most `budget` new masks: fewer where a third of it brings nothing better, or none are left."""
    if budget == 0:
        return
    last, idle = len(trials.speedups) + budget, ceil(budget * IDLE_SHARE)
    improved_at = len(trials.speedups)
    proposals, patience = strategy(trials.speedups, num_layers, seed), PATIENCE
    mask = next(proposals)
    while patience:
        patience = patience - 1 if mask in trials.speedups else PATIENCE
        before = trials.best
        score = trials.speedup(mask)
        if score > before:
            improved_at = len(trials.speedups)
        if len(trials.speedups) == last or len(trials.speedups) - improved_at >= idle:
            return
        mask = proposals.send(score)


def best_of(known: Known) -> SkipMask:
    """The mask of highest score, the earliest among equals; the full model where nothing is known."""
    return max(known, key=lambda mask: known[mask], default=EMPTY_MASK)


def at_random(known: Known, num_layers: int, seed: int) -> Proposals:
    """Masks of any size, each size as likely."""
    chance = random.Random(seed)
    while True:
        size = chance.randint(1, 2 * num_layers)
        yield flipped(EMPTY_MASK, set(chance.sample(range(2 * num_layers), size)), num_layers)


def greedy(known: Known, num_layers: int, seed: int) -> Proposals:
    """Ascends from the best mask by single flips, then by pairs; then again from a changed best mask."""
    chance = random.Random(seed)
    yield from ascent(best_of(known), num_layers, chance)
    while True:
        kick = set(chance.sample(range(2 * num_layers), min(KICK, 2 * num_layers)))
        yield from ascent(flipped(best_of(known), kick, num_layers), num_layers, chance)


def ascent(start: SkipMask, num_layers: int, chance: random.Random) -> Proposals:
    """Takes the first flip that helps, until neither a single one nor some random pairs do."""
    best, best_score = start, (yield start)
    is_rising = True
    while is_rising:
        is_rising = False
        singles = [{place} for place in chance.sample(range(2 * num_layers), 2 * num_layers)]
        pairs = (set(chance.sample(range(2 * num_layers), 2)) for _ in range(2 * num_layers))
        for places in chain(singles, pairs):
            candidate = flipped(best, places, num_layers)
            score = yield candidate
            if score > best_score:
                best, best_score, is_rising = candidate, score, True
                break


def evolution(known: Known, num_layers: int, seed: int) -> Proposals:
    """Children of two of the best masks: each place from either parent, then about one flip."""
    chance = random.Random(seed)
    places = range(2 * num_layers)
    while True:
        fittest = sorted(known, key=lambda mask: -known[mask])[:POPULATION] or [EMPTY_MASK]
        one, other = (min(chance.choices(range(len(fittest)), k=TOURNAMENT)) for _ in range(2))
        differing = flips_between(fittest[one], fittest[other], num_layers)
        crossed = {place for place in differing if chance.random() < 0.5}
        mutated = {place for place in places if chance.random() < 1 / len(places)}
        yield flipped(fittest[one], crossed ^ mutated, num_layers)


def flips_between(one: SkipMask, other: SkipMask, num_layers: int) -> list[int]:
    """The places in which two masks differ, in order: a set's own order would differ between runs."""
    mlp = {num_layers + layer for layer in one.mlp ^ other.mlp}
    return sorted((one.attention ^ other.attention) | mlp)


STRATEGIES: dict[str, Strategy] = {
    "random": at_random,
    "greedy": greedy,
    "evolution": evolution,
    "bayesian": bayesian,
}
