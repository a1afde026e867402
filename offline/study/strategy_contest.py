"""Strategies of mask search side by side: the same texts, starting masks and budget, several seeds.

All masks are of drafts with the model's own weights over all tokens.
"""

import time
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from offline.calibration.result import Calibration
from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.search.race import DomainTraces, Objective
from offline.calibration.search.search import Searcher
from offline.calibration.search.starting_masks import StartingMasks
from offline.calibration.search.strategies import STRATEGIES, explore
from offline.calibration.search.trials import MaskTrials, Trials
from offline.records import StageRecord, Strict, digest_of, folder_name, reused_or_made
from offline.settings import StudySettings
from server.engine import SkipMask


class StrategyRuns(Strict):
    """The curve of each seed, and the mean seconds of a run after the starting masks."""

    curves: list[list[float]]
    seconds: float


class DomainStrategies(StageRecord):
    """The runs of each strategy on the texts of one domain."""

    strategies: dict[str, StrategyRuns]


def compare_strategies(done: Calibration, name: str, settings: StudySettings) -> DomainStrategies:
    """Every strategy from the same starting masks with the same budget and several seeds, on a domain's texts."""
    model, texts, parts = done.loaded.model, done.texts[name].search, done.parts
    folder = done.work / folder_name(name)
    digest = digest_of(done.found[name].digest, settings.seeds)

    def make() -> DomainStrategies:
        searcher = Searcher(done.loaded, parts, done.cost.model, settings, name, folder, digest)
        starts = StartingMasks(model, parts, done.cost.model, texts).around([DraftChoice()])
        found = {}
        for strategy in tqdm(STRATEGIES, f"strategies for {name}", leave=False):
            # Scores are remembered, so each strategy gets an objective of its own, which knows the starts only.
            objective = searcher.objective([DomainTraces(model, parts, texts)])
            for mask in starts:
                objective(DraftChoice(mask=mask), DraftChoice())
            started = time.perf_counter()
            runs = [one_curve(searcher, strategy, starts, objective, settings.seed + i) for i in range(settings.seeds)]
            found[strategy] = StrategyRuns(curves=runs, seconds=(time.perf_counter() - started) / settings.seeds)
        return DomainStrategies(digest=digest, strategies=found)

    return reused_or_made(folder / "study-strategies.json", DomainStrategies, digest, make)


def one_curve(
    searcher: Searcher, strategy: str, starts: Sequence[SkipMask], objective: Objective, seed: int
) -> list[float]:
    """The best score from the last starting mask on, in units of the best of them."""
    trials = Trials(None, "", objective)
    masks = MaskTrials(trials, [DraftChoice()])
    for mask in starts:
        masks.speedup(mask)
    explore(STRATEGIES[strategy], masks, searcher.num_layers, searcher.settings.budget, seed)
    curve = trials.curve[len(starts) - 1 :]
    return [round(value / curve[0], 4) for value in curve]


def relative_curves(found: Mapping[str, DomainStrategies], strategy: str) -> list[list[float]]:
    """A strategy's curves of all domains and seeds, made equally long."""
    curves = [curve for domain in found.values() for curve in domain.strategies[strategy].curves]
    longest = max(map(len, curves))
    return [curve + curve[-1:] * (longest - len(curve)) for curve in curves]
