"""The speed-ups of an evaluation as a bar chart: a group per domain, a bar with its interval per method."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from offline.evaluation.summary import ResultRow
from server.engine import PLAIN


def draw_speedups(rows: Sequence[ResultRow], path: Path) -> None:
    """Writes a .png of every method but `plain`, which is the line at 1."""
    methods = [name for name in dict.fromkeys(row.method for row in rows) if name != PLAIN]
    domains = list(dict.fromkeys(row.domain for row in rows))
    figure = Figure(figsize=(2 + 1.6 * len(domains), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(len(methods), 1)
    for number, method in enumerate(methods):
        found = {row.domain: row.speedup for row in rows if row.method == method}
        heights = [found[domain].median for domain in domains]
        errors = [
            [max(found[d].median - found[d].low, 0) for d in domains],
            [max(found[d].high - found[d].median, 0) for d in domains],
        ]
        places = [i + (number - (len(methods) - 1) / 2) * width for i in range(len(domains))]
        axes.bar(places, heights, width, yerr=errors, label=method, capsize=2, error_kw={"linewidth": 0.8})
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_ylabel("speed over plain decoding")
    axes.legend(ncols=min(len(methods), 4) or 1, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
