"""The pictures that `study` adds to the report."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from offline.calibration.report.figures import COLOURS, errors, label, panel
from offline.evaluation.summary import Interval


def draw_correlation(points: Sequence[tuple[float, float]], spearman: float) -> Figure:
    """Measured over predicted speed, a dot per draft."""
    figure, axes = panel(5.5, 5)
    axes.scatter([x for x, _ in points], [y for _, y in points], s=22, color=COLOURS[0], alpha=0.8, linewidths=0)
    axes.axline((1, 1), slope=1, color="black", linewidth=0.8, linestyle="--", label="prediction = measurement")
    axes.grid(axis="both")
    axes.set_xlabel("predicted speed over plain decoding")
    axes.set_ylabel("measured")
    axes.set_title(f"rank correlation {spearman:.2f} over {len(points)} drafts", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_strategies(curves: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
    """Mean and range over runs of the best score, in units of the best starting mask's."""
    figure, axes = panel(7.5, 4)
    for number, (name, runs) in enumerate(curves.items()):
        values, colour = np.array(runs), COLOURS[number]
        steps = np.arange(values.shape[1])
        axes.plot(steps, values.mean(0), color=colour, linewidth=1.8, label=name)
        axes.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("masks scored after the starting ones")
    axes.set_ylabel("best score, best start = 1")
    axes.legend(frameon=False, fontsize=9)
    return figure


def draw_rival(ratios: Mapping[str, Interval]) -> Figure:
    """Speed with the other artifact's drafts over this one's, with 95 % intervals."""
    figure, axes = panel(2.5 + 1.1 * len(ratios), 3.4)
    places, values = np.arange(len(ratios)), list(ratios.values())
    axes.errorbar(places, [value.median for value in values], yerr=errors(values), fmt="o", capsize=4, color=COLOURS[1])
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(places, [label(name) for name in ratios], rotation=25, ha="right")
    axes.set_ylabel("other artifact / this one")
    axes.margins(x=0.1, y=0.3)
    return figure
