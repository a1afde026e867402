"""The pictures of the calibration report; each function draws one."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.manifold import TSNE

from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.search.verdicts import Verdict
from offline.evaluation.summary import Interval

COLOURS = ("#3b6fb6", "#d9822b", "#4a9d5b", "#b5485d", "#7d63a8", "#8a6a4f", "#c77cb0", "#6f7378", "#a8a13a", "#3aa3ad")
PALE, DARK, GRID = "#e9ebee", "#2f4858", "#d5d8dc"
MAX_LABEL = 22
Groups = Mapping[str, NDArray[np.float32]]


def label(name: str) -> str:
    """A name as matplotlib prints it: not too long, and with no mathematics in it."""
    short = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
    return short.replace("$", r"\$")


def panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    tidy(axes)
    return figure, axes


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def draw_map(prompts: Groups, anchors: Groups, seed: int) -> Figure:
    """t-SNE of prompt vectors [n, hidden] and anchors by domain; centred and of length one, as the router compares."""
    rows = np.concatenate([*prompts.values(), *anchors.values()])
    rows = rows - np.concatenate(list(anchors.values())).mean(0)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    perplexity = max(1.0, min(30.0, (len(rows) - 1) / 3))
    # PCA as a start needs two directions that differ; a handful of equal prompts has none.
    start = "pca" if len(np.unique(rows, axis=0)) > 2 else "random"
    places = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(rows)
    figure, axes = panel(7.5, 5)
    parts = np.split(places, np.cumsum([len(group) for group in [*prompts.values(), *anchors.values()]])[:-1])
    for number, name in enumerate(prompts):
        colour = COLOURS[number % len(COLOURS)]
        points, marks = parts[number], parts[len(prompts) + number]
        axes.scatter(points[:, 0], points[:, 1], s=9, color=colour, alpha=0.55, linewidths=0, label=label(name))
        axes.scatter(marks[:, 0], marks[:, 1], s=60, color=colour, marker="D", edgecolors="black", linewidths=0.9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9, markerscale=2.5)
    return figure


def draw_masks(choices: Mapping[str, DraftChoice], num_layers: int) -> Figure:
    """Layers from the bottom up, two columns per draft: attention and MLP; dark is kept, orange patched."""
    masks = [choice.mask for choice in choices.values()]
    figure, axes = panel(1.5 + 1.3 * len(masks), 1.7 + 0.2 * num_layers)
    kept = np.ones((num_layers, 3 * len(masks)))
    for column, choice in enumerate(choices.values()):
        for offset, skipped in enumerate((choice.mask.attention, choice.mask.mlp)):
            shown = [2 if layer not in skipped else 0 for layer in range(num_layers)]
            kept[:, 3 * column + offset] = shown if choice.patch_of is None else 3
    shades = ListedColormap([PALE, "white", DARK, COLOURS[1]])
    axes.pcolormesh(kept, cmap=shades, vmin=0, vmax=3, edgecolors="white", linewidth=1)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    step = max(num_layers // 16, 1)
    axes.set_yticks([layer + 0.5 for layer in range(0, num_layers, step)], [str(i) for i in range(0, num_layers, step)])
    axes.set_ylabel("layer")
    centres = [3 * column + 1 for column in range(len(masks))]
    names = ["\n".join([label(name), *str(choice).split(", ")]) for name, choice in choices.items()]
    axes.set_xticks(centres, names, fontsize=8)
    axes.tick_params(length=0)
    for column in range(len(masks)):
        for offset, part in enumerate(("attn", "MLP")):
            axes.text(3 * column + offset + 0.5, num_layers + 0.3, part, ha="center", fontsize=7)
    return figure


def draw_speeds(verdicts: Sequence[Verdict], measured: Mapping[str, Interval]) -> Figure:
    """Acceptance, and the predicted and measured speed of each domain, with 95 % intervals."""
    figure = Figure(figsize=(3 + 1.3 * len(verdicts), 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    places, names = range(len(verdicts)), [label(verdict.name) for verdict in verdicts]
    bars(left, places, [verdict.acceptance for verdict in verdicts], "acceptance", COLOURS[2])
    left.set_ylabel("share of drafted tokens accepted")
    left.set_ylim(0, 1)
    bars(right, [place - 0.2 for place in places], [verdict.speedup for verdict in verdicts], "predicted", COLOURS[0])
    known = [(place, measured[v.name]) for place, v in zip(places, verdicts, strict=True) if v.name in measured]
    bars(right, [place + 0.2 for place, _ in known], [each for _, each in known], "measured", COLOURS[1])
    right.axhline(1, color="black", linewidth=0.8, linestyle="--")
    right.set_ylabel("speed over plain decoding")
    right.legend(frameon=False, fontsize=9, loc="upper right", ncols=2, bbox_to_anchor=(1, 1.1))
    for axes in (left, right):
        tidy(axes)
        axes.set_xticks(places, names, rotation=25, ha="right")
    return figure


def bars(axes: Axes, places: Sequence[float], values: Sequence[Interval], name: str, colour: str) -> None:
    heights = [value.median for value in values]
    axes.bar(places, heights, 0.36, color=colour, label=name, yerr=errors(values), capsize=3, error_kw={"linewidth": 1})


def errors(values: Sequence[Interval]) -> list[list[float]]:
    """Distances of the ends of intervals from their middles, as matplotlib takes them."""
    below = [max(value.median - value.low, 0) for value in values]
    return [below, [max(value.high - value.median, 0) for value in values]]


def draw_gains(verdicts: Sequence[Verdict]) -> Figure:
    """The gain of each own draft over the mixed one, before the noise of the search."""
    figure, axes = panel(2.5 + 1.2 * len(verdicts), 3.6)
    places = np.arange(len(verdicts))
    noise = [verdict.noise for verdict in verdicts]
    axes.bar(places, [2 * n for n in noise], 0.7, bottom=[-n for n in noise], color=PALE, label="noise of the search")
    for place, verdict in zip(places, verdicts, strict=True):
        colour = COLOURS[2] if verdict.pays else COLOURS[3]
        axes.errorbar(place, verdict.gain.median, yerr=errors([verdict.gain]), fmt="o", color=colour, capsize=4)
        text = "own draft" if verdict.pays else "mixed draft"
        axes.annotate(text, (place, verdict.gain.high), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.margins(y=0.2)
    axes.set_xticks(places, [label(verdict.name) for verdict in verdicts], rotation=25, ha="right")
    axes.set_ylabel("gain over the mixed draft")
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(0, 1.13))
    return figure


def draw_parts(verdicts: Sequence[Verdict]) -> Figure:
    """The predicted speed of each draft reduced to one of its parts, and of all of it."""
    figure, axes = panel(2.5 + 1.3 * len(verdicts), 3.6)
    places, names = np.arange(len(verdicts)), list(verdicts[0].parts)
    for number, name in enumerate(names):
        heights = [verdict.parts[name] for verdict in verdicts]
        axes.bar(places + 0.16 * (number - 2), heights, 0.15, color=COLOURS[number], label=name)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(places, [label(verdict.name) for verdict in verdicts], rotation=25, ha="right")
    axes.set_ylabel("speed over plain decoding")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=len(names), bbox_to_anchor=(0, 1.13))
    return figure


def draw_patches(agreements: Mapping[str, Sequence[float]]) -> Figure:
    """How often a patch's first choice is the model's: at the start, and after the best epoch."""
    figure, axes = panel(2.5 + 1.1 * len(agreements), 3.4)
    places = np.arange(len(agreements))
    steps = {"least squares, or the mixed patch": [each[0] for each in agreements.values()]}
    steps["and gradient steps"] = [max(each) for each in agreements.values()]
    for number, (name, heights) in enumerate(steps.items()):
        axes.bar(places + 0.36 * (number - 0.5), heights, 0.34, color=COLOURS[number], label=name)
    axes.set_xticks(places, [label(name) for name in agreements], rotation=25, ha="right")
    axes.set_ylabel("share of places")
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.13))
    return figure


def draw_curves(curves: Mapping[str, Sequence[float]]) -> Figure:
    """The best score after each scored draft."""
    figure, axes = panel(7.5, 4)
    for number, (name, curve) in enumerate(curves.items()):
        colour = "black" if number == len(curves) - 1 else COLOURS[number % len(COLOURS)]
        axes.step(range(1, len(curve) + 1), curve, where="post", color=colour, linewidth=1.5, label=label(name))
    axes.set_xlabel("drafts scored")
    axes.set_ylabel("best predicted speed so far")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return figure


def draw_seconds(seconds: Mapping[str, float]) -> Figure:
    """Where the time of the calibration went."""
    figure, axes = panel(7.5, 0.9 + 0.34 * len(seconds))
    names = list(seconds)[::-1]
    found = axes.barh(names, [seconds[name] for name in names], color=COLOURS[0])
    axes.bar_label(found, fmt="%.1f s", padding=3, fontsize=9)
    axes.margins(x=0.12)
    axes.grid(False)
    axes.set_xlabel("seconds")
    return figure


def draw_matrix(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], form: str, axis: int
) -> Figure:
    """A table of figures, shaded from least to most along an axis; `form` is the format of a figure."""
    least, most = values.min(axis, keepdims=True), values.max(axis, keepdims=True)
    shades = (values - least) / np.maximum(most - least, 1e-12)
    figure, axes = panel(2.8 + 0.95 * len(columns), 1.6 + 0.42 * len(rows))
    axes.imshow(shades, cmap="Blues", aspect="auto", vmin=0, vmax=1.3)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(columns)), [label(name) for name in columns], rotation=25, ha="right")
    axes.set_yticks(range(len(rows)), [label(name) for name in rows])
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if shades[row, column] > 0.7 else "black"
        axes.text(column, row, format(value, form), ha="center", va="center", color=colour, fontsize=9)
    return figure
