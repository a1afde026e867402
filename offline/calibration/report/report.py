"""The report of a calibration: one HTML page that needs nothing else, its pictures also as .png files."""

import base64
import io
import warnings
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from offline.calibration.report import figures
from offline.calibration.report.template import CAPTIONS, PAGE, SECTION
from offline.calibration.result import Calibration
from offline.calibration.search.verdicts import Verdict
from offline.prompts import MIXED
from offline.records import write_atomically
from server.engine import OTHER_DOMAIN

PICTURES = "report"
DPI = 130
MAX_POINTS = 100
"""Prompts of a domain on the map."""
HEAD = (
    *("domain", "prompts", "draft", "skipped", "weights", "tokens", "draft cost"),
    *("acceptance", "predicted", "measured", "gain", "noise"),
)


def write_report(calibration: Calibration, out: Path, further: Sequence[tuple[str, Figure]] = ()) -> str:
    """Writes `report.html` and `report/*.png` in `out`; returns the table as plain text.

    `further` are pictures by name, to come after the report's own.
    """
    rows = [HEAD, *table_rows(calibration)]
    sections = []
    for name, figure in [*drawn_figures(calibration), *further]:
        png = rendered(figure)
        write_atomically(out / PICTURES / f"{name}.png", png)
        title, caption = CAPTIONS[name]
        source = "data:image/png;base64," + base64.b64encode(png).decode()
        sections.append(SECTION.format(title=title, caption=caption, source=source))
    page = PAGE.format(
        model=escape(calibration.manifest.model_name),
        summary=escape(summary(calibration)),
        table=html_table(rows),
        routing=escape(routing(calibration)),
        sections="\n".join(sections),
        settings=escape(", ".join(f"{name} {value}" for name, value in calibration.manifest.settings.items())),
        versions=escape(", ".join(f"{name} {value}" for name, value in calibration.manifest.versions.items())),
        created=escape(calibration.manifest.created),
    )
    write_atomically(out / "report.html", page.encode())
    return plain_table(rows)


def drawn_figures(calibration: Calibration) -> Iterator[tuple[str, Figure]]:
    """The pictures by name, in the order of the page."""
    verdicts, manifest = calibration.verdicts, calibration.manifest
    names = [verdict.name for verdict in verdicts.domains]
    yield "gains", figures.draw_gains(verdicts.domains)
    yield "parts", figures.draw_parts(verdicts.all)
    yield "patches", figures.draw_patches({name: each.agreements for name, each in calibration.fitted.items()})
    yield "speeds", figures.draw_speeds(verdicts.all, calibration.measured.speedups)
    choices = {name: found.own.choice for name, found in calibration.found.items()}
    yield "masks", figures.draw_masks(choices, manifest.num_layers)
    yield (
        "cross",
        figures.draw_matrix(np.array(verdicts.cross), [f"draft: {n}" for n in [*names, MIXED]], names, ".2f", 0),
    )
    vectors = {name: each[:MAX_POINTS].numpy() for name, each in calibration.collection.vectors.items()}
    anchors, owners = calibration.anchors.tensor.numpy(), np.array(calibration.anchors.domains)
    yield "map", figures.draw_map(vectors, {n: anchors[owners == i] for i, n in enumerate(names)}, manifest.seed)
    confusion = np.array(calibration.anchors.confusion, dtype=float)
    yield "routing", figures.draw_matrix(confusion, names, [*names, OTHER_DOMAIN], ".0f", 1)
    yield "curves", figures.draw_curves({name: found.own.curve for name, found in calibration.found.items()})
    yield "seconds", figures.draw_seconds(stage_seconds(calibration))


def stage_seconds(calibration: Calibration) -> dict[str, float]:
    """Seconds of each stage under the name that its bar has, in the runs that finished them."""
    collected = [domain.seconds for domain in calibration.collection.domains.values()]
    clusters = calibration.collection.clusters
    return {
        "prompt vectors": sum(collected) + (clusters.seconds if clusters else 0),
        "anchors": calibration.anchors.seconds,
        "cost of passes": calibration.cost.seconds,
        "the model's texts": sum(each.seconds for each in calibration.texts.values()),
        "the texts' tokens": sum(each.seconds for each in calibration.counted.values()),
        "patches": sum(each.seconds for each in calibration.fitted.values()),
        **{f"drafts: {figures.label(name)}": found.seconds for name, found in calibration.found.items()},
        "verdicts": calibration.verdicts.seconds,
        "measuring": calibration.measured.seconds,
    }


def rendered(figure: Figure) -> bytes:
    """The figure as .png; a letter that the font lacks becomes a box."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def summary(calibration: Calibration) -> str:
    """The first paragraph of the page: which domains gain, how long it all took."""
    verdicts, count = calibration.verdicts, len(calibration.verdicts.domains)
    total = sum(stage_seconds(calibration).values())
    paying = [verdict.name for verdict in verdicts.domains if verdict.pays]
    found = calibration.collection.clusters
    clustering = found.clustering if found else None
    how = ""
    if clustering and clustering.stability is not None:
        how = f" The domains were found: silhouette {clustering.silhouette:.2f}, stability {clustering.stability:.2f}."
    if clustering and clustering.stability is None:
        how = " No clusters were found in the prompts, so they are one domain."
    return (
        "Domains that gain from a draft of their own, beyond the noise of the search: "
        f"{', '.join(paying) or 'none'} (of {count}; different drafts in use: {verdicts.num_drafts}). "
        f"Calibration took {total:.0f} seconds.{how}"
    )


def routing(calibration: Calibration) -> str:
    """The paragraph on routing: how often it is right, and the rates of false rejects and false accepts."""
    anchors = calibration.anchors
    unknown = ""
    if anchors.false_accept_rate is not None:
        unknown = (
            f" Prompts of an unknown kind pass it at a rate of {anchors.false_accept_rate:.1%} (false accept; each "
            "domain in turn taken for unknown)."
        )
    return (
        f"{anchors.routing_accuracy:.1%} of held-out prompts are nearest to an anchor of their own domain. "
        f"{anchors.false_reject_rate:.1%} of them fall under the similarity threshold of their domain "
        f"({min(anchors.thresholds):.3f} to {max(anchors.thresholds):.3f}) and take the mixed draft (false reject)."
        f"{unknown}"
    )


def table_rows(calibration: Calibration) -> Iterator[tuple[str, ...]]:
    """A row per domain and a last one for the mixed draft, with the columns of `HEAD`."""
    counts = {name: len(domain.prompts) for name, domain in calibration.collection.domains.items()}
    for verdict in calibration.verdicts.all:
        yield table_row(verdict, counts.get(verdict.name, sum(counts.values())), calibration)


def table_row(verdict: Verdict, num_prompts: int, calibration: Calibration) -> tuple[str, ...]:
    choice, cost = verdict.choice, calibration.cost.model
    measured, is_mixed = calibration.measured.speedups.get(verdict.name), verdict.name == MIXED
    has_noise = verdict.seed_noise is not None
    return (
        verdict.name,
        str(num_prompts),
        "own" if verdict.draft_of == verdict.name else verdict.draft_of,
        f"{choice.mask.num_skipped} of {2 * cost.num_layers}" if choice.patch_of is None else "patched",
        "low-bit" if choice.is_low_bit else "own",
        f"{choice.vocabulary.size:,}" if choice.vocabulary else "all",
        f"{cost.draft(choice) / cost.plain:.2f}",
        f"{verdict.score.acceptance:.2f}",
        f"{verdict.score.speedup:.2f}",
        f"{measured.median:.2f}" if measured else "-",
        "-" if is_mixed else f"{verdict.gain.median:+.3f}",
        f"{verdict.noise:.3f}" if has_noise else "-",
    )


def html_table(rows: list[tuple[str, ...]]) -> str:
    head, *body = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return f"<thead><tr>{head}</tr></thead><tbody>" + "".join(f"<tr>{row}</tr>" for row in body) + "</tbody>"


def plain_table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
