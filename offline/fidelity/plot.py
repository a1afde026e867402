"""Fidelity over speed as one picture: a point per variant, with its bits."""

from collections.abc import Sequence
from pathlib import Path

from offline.calibration.report.figures import COLOURS, GRID, panel
from offline.fidelity.fidelity import FidelityRow

ABOVE, BELOW = (0, 9), (0, -17)
"""Places of a label beside its point, in points; neighbours take turns."""


def draw_fidelity(rows: Sequence[FidelityRow], path: Path) -> None:
    """Writes a .svg or .png; right is faster, down is closer to the reference, which is at 0."""
    figure, axes = panel(7.5, 4.5)
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.axhline(0, color="black", linewidth=0.8, linestyle="--")
    for number, row in enumerate(sorted(rows, key=lambda row: row.tokens_per_second)):
        point = row.tokens_per_second, 100 * row.loss_change
        axes.scatter(*point, s=40, color=COLOURS[number % len(COLOURS)], zorder=3)
        axes.annotate(
            f"{row.variant}, {row.weight_bits:.1f} bits",
            point,
            BELOW if number % 2 else ABOVE,
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("tokens per second, one answer at a time")
    axes.set_ylabel("loss on prompts, % over fp32 weights")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
