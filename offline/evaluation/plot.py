"""Evaluations as pictures: speed-ups by domain, or speed-ups and acceptance by temperature."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from offline.evaluation.summary import MEAN, Interval, ResultRow
from server.engine import PLAIN

MOST_BESIDE = 8
"""Methods whose bars still can be told apart in each domain."""


def draw_speedups(rows: Sequence[ResultRow], path: Path) -> None:
    """Writes a .png of the speed-ups over `plain`, the line at 1: by domain, or means alone of many methods."""
    (draw_domains if len(drafting_methods(rows)) <= MOST_BESIDE else draw_means)(rows, path)


def draw_means(rows: Sequence[ResultRow], path: Path) -> None:
    """Means over domains with their intervals, a bar per method, the fastest on top."""
    means = {row.method: row.speedup for row in rows if row.domain == MEAN and row.method != PLAIN}
    methods = sorted(means, key=lambda name: means[name].median)
    figure = Figure(figsize=(7, 1 + 0.28 * len(methods)), layout="constrained")
    axes = figure.subplots()
    gains = [means[name] for name in methods]
    axes.barh(methods, [gain.median for gain in gains], xerr=errors(gains), capsize=2, error_kw={"linewidth": 0.8})
    axes.axvline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xlabel("speed over plain decoding, mean over domains")
    save(figure, path)


def draw_domains(rows: Sequence[ResultRow], path: Path) -> None:
    """A group of bars per domain, a bar with its interval per method."""
    methods = drafting_methods(rows)
    domains = list(dict.fromkeys(row.domain for row in rows))
    figure = Figure(figsize=(2 + 1.6 * len(domains), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        found = {row.domain: row.speedup for row in rows if row.method == method}
        gains = [found[domain] for domain in domains]
        heights = [gain.median for gain in gains]
        places = [i + (number - (len(methods) - 1) / 2) * width for i in range(len(domains))]
        axes.bar(places, heights, width, yerr=errors(gains), label=method, capsize=2, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("speed over plain decoding")
    axes.legend(ncols=min(len(methods), 4) or 1, fontsize="small")
    save(figure, path)


def draw_temperatures(rows: Mapping[float, Sequence[ResultRow]], path: Path) -> None:
    """Writes a .png of the means over domains by temperature, a line per method: speed-ups, and what is accepted."""
    means = {at: {row.method: row for row in found if row.domain == MEAN} for at, found in sorted(rows.items())}
    figure = Figure(figsize=(9, 4), layout="constrained")
    speed, acceptance = figure.subplots(1, 2)
    for method in drafting_methods([row for found in rows.values() for row in found]):
        if any(method not in found for found in means.values()):
            continue  # a peer that does not sample
        draw_speed_line(speed, method, {at: found[method] for at, found in means.items()})
        accepted = {at: found[method].acceptance for at, found in means.items()}
        known = {at: value for at, value in accepted.items() if value is not None}
        acceptance.plot(list(known), list(known.values()), marker="o", label=method)
    speed.axhline(1, color="black", linewidth=0.8, linestyle="--")
    for axes, label in ((speed, "speed over plain decoding"), (acceptance, "accepted of drafted tokens")):
        axes.set_xlabel("temperature")
        axes.set_ylabel(label)
        axes.legend(fontsize="small")
    acceptance.set_ylim(0, 1)
    save(figure, path)


def draw_speed_line(axes: Axes, method: str, rows: Mapping[float, ResultRow]) -> None:
    gains = [row.speedup for row in rows.values()]
    heights = [gain.median for gain in gains]
    axes.errorbar(list(rows), heights, yerr=errors(gains), marker="o", capsize=3, label=method)


def errors(gains: Sequence[Interval]) -> list[list[float]]:
    """How far their intervals reach below and above the medians."""
    return [[max(gain.median - gain.low, 0) for gain in gains], [max(gain.high - gain.median, 0) for gain in gains]]


def drafting_methods(rows: Sequence[ResultRow]) -> list[str]:
    return [name for name in dict.fromkeys(row.method for row in rows) if name != PLAIN]


def save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
