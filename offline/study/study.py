"""The `study` command: whether the score, the search strategy and the budget of a calibration can be trusted.

It takes what `calibrate` left in a folder, spends far more time, and adds three pictures to the report.
"""

import numpy as np

from offline.calibration.pipeline import calibrate
from offline.calibration.report.report import write_report
from offline.calibration.search.strategies import STRATEGIES
from offline.evaluation.summary import Interval
from offline.records import Strict
from offline.settings import StudySettings
from offline.study.figures import draw_correlation, draw_rival, draw_strategies
from offline.study.score_check import compare_rival, correlate
from offline.study.strategy_contest import compare_strategies, relative_curves


class Study(Strict):
    """The JSON object that `study` prints, of the format `knnssd-study/1`."""

    format: str = "knnssd-study/1"
    spearman: float
    spearman_best_half: float
    gains: dict[str, dict[str, float]]
    """By strategy: the best score over that of the starting masks, and seconds; means over domains and seeds."""
    rival: dict[str, Interval]
    """Measured speed with the other artifact's drafts over that with this one's, by domain and in the mean."""


def study(settings: StudySettings) -> Study:
    """Runs what is missing of the calibration, then the study; the report is written anew with its pictures."""
    done = calibrate(settings).calibration
    assert done is not None
    correlation = correlate(done, settings)
    strategies = {name: compare_strategies(done, name, settings) for name in done.texts}
    rival = compare_rival(done, settings, settings.rival) if settings.rival else {}
    figures = [("correlation", draw_correlation(correlation.points, correlation.spearman))]
    curves = {name: relative_curves(strategies, name) for name in STRATEGIES}
    figures.append(("strategies", draw_strategies(curves)))
    if rival:
        figures.append(("rival", draw_rival(rival)))
    write_report(done, settings.out, figures)
    gains = {
        name: {
            "gain": float(np.mean([curve[-1] for curve in curves[name]])),
            "seconds": float(np.mean([found.strategies[name].seconds for found in strategies.values()])),
        }
        for name in STRATEGIES
    }
    return Study(
        spearman=correlation.spearman,
        spearman_best_half=correlation.spearman_best_half,
        gains=gains,
        rival=rival,
    )
