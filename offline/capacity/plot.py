"""Replicas over rate, a line for each goal and kind of routing."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from offline.calibration.report.figures import COLOURS, panel


def draw_capacity(rates: Sequence[float], needed: Mapping[str, Sequence[int | None]], title: str) -> Figure:
    """A line ends where no number of replicas is enough."""
    figure, axes = panel(7.5, 4)
    for number, (name, counts) in enumerate(needed.items()):
        known = [(rate, count) for rate, count in zip(rates, counts, strict=True) if count is not None]
        xs, ys = [rate for rate, _ in known], [count for _, count in known]
        axes.plot(xs, ys, marker="o", markersize=3, color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_xlabel("requests a second")
    axes.set_ylabel("replicas")
    axes.set_title(title, fontsize=10)
    axes.set_ylim(bottom=0)
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=9)
    return figure
