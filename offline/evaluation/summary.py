"""Samples -> figures: speed-ups over `plain` with their intervals, acceptance, exactness, by method and domain."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from offline.evaluation.measure import Sample
from offline.records import Strict
from server.engine import PLAIN, SequenceStats, methods

RESAMPLES = 1000
MEAN = "mean"


class Interval(Strict):
    """A median with its bootstrap 95 % interval."""

    median: float
    low: float
    high: float


class ResultRow(Strict):
    """One method on one domain, or on the mean over domains; None where a figure has no meaning for the method."""

    method: str
    domain: str
    prompts: int
    tokens: int
    tokens_per_second: float
    speedup: Interval
    decode_speedup: Interval | None
    acceptance: float | None
    mean_accepted_length: float | None
    exact: float | None


def summarise(samples: Sequence[Sample], seed: int, inexact: frozenset[str] = frozenset()) -> list[ResultRow]:
    """Rows by method, in the order of the samples, a row per domain and their mean.

    Text cannot be compared for the methods in `inexact`, which draw with another randomness.
    """
    by_method: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        by_method[sample.method][sample.job.domain].append(sample)
    plain = {(sample.job.seed, sample.repeat): sample for sample in samples if sample.method == PLAIN}
    rows = []
    for method, domains in by_method.items():
        gains = {name: gain(group, plain, seed) for name, group in domains.items()}
        found = [row(method, name, group, gains[name], plain, method in inexact) for name, group in domains.items()]
        rows += [*found, mean_row(method, found, list(gains.values()))]
    return rows


class Gain(NamedTuple):
    """A method's speed over plain's: the median over prompts, then that of each of `RESAMPLES` resamples of them.

    `whole` compares whole answers, `decoding` the tokens after the first; None where no prompt has both times.
    """

    whole: NDArray[np.float64]
    decoding: NDArray[np.float64] | None


def gain(samples: Sequence[Sample], plain: dict[tuple[int, int], Sample], seed: int) -> Gain:
    """Compares each sample with plain's of the same prompt and repeat."""
    pairs = [(sample, plain[sample.job.seed, sample.repeat]) for sample in samples]
    whole = [(sample.job.seed, sample.rate / other.rate) for sample, other in pairs]
    decoding = [
        (sample.job.seed, sample.decode_rate / other.decode_rate)
        for sample, other in pairs
        if sample.decode_rate and other.decode_rate
    ]
    medians = bootstrap_medians(per_prompt(decoding), seed) if decoding else None
    return Gain(bootstrap_medians(per_prompt(whole), seed), medians)


def per_prompt(ratios: Sequence[tuple[int, float]]) -> list[float]:
    """Per prompt (named by its seed), the median over repeats."""
    by_prompt: dict[int, list[float]] = defaultdict(list)
    for seed, ratio in ratios:
        by_prompt[seed].append(ratio)
    return [float(np.median(values)) for values in by_prompt.values()]


def bootstrap_medians(values: Sequence[float], seed: int) -> NDArray[np.float64]:
    """The median of the values, then of each of `RESAMPLES` resamples of them."""
    given = np.array(values, dtype=np.float64)
    drawn = given[np.random.default_rng(seed).integers(len(given), size=(RESAMPLES, len(given)))]
    return np.concatenate(([np.median(given)], np.median(drawn, axis=1)))


def interval(medians: NDArray[np.float64]) -> Interval:
    """The first value, with the range that holds 95 % of the others, which are of resamples."""
    low, high = np.percentile(medians[1:], [2.5, 97.5])
    return Interval(median=float(medians[0]), low=float(low), high=float(high))


def row(
    method: str,
    domain: str,
    samples: Sequence[Sample],
    gained: Gain,
    plain: dict[tuple[int, int], Sample],
    is_inexact: bool,
) -> ResultRow:
    stats = [sample.answer.stats for sample in samples if sample.answer.stats is not None]
    acceptance, length = drafting_figures(stats)
    same = [s.answer.ids == plain[s.job.seed, s.repeat].answer.ids for s in samples]
    tokens = sum(len(sample.answer.ids) for sample in samples)
    return ResultRow(
        method=method,
        domain=domain,
        prompts=len({sample.job.seed for sample in samples}),
        tokens=tokens,
        tokens_per_second=tokens / sum(sample.seconds for sample in samples),
        speedup=interval(gained.whole),
        decode_speedup=None if gained.decoding is None else interval(gained.decoding),
        acceptance=acceptance,
        mean_accepted_length=length,
        exact=None if is_inexact else sum(same) / len(same),
    )


def drafting_figures(stats: Sequence[SequenceStats]) -> tuple[float | None, float | None]:
    """(accepted of drafted tokens, tokens emitted per verification of a draft), over all sequences together."""
    drafts, drafted, accepted = (sum(values) for values in zip((0, 0, 0), *map(counts, stats), strict=True))
    return (accepted / drafted, 1 + accepted / drafts) if drafted else (None, None)


def counts(stats: SequenceStats) -> tuple[int, int, int]:
    return stats.num_drafts, stats.num_drafted, stats.num_accepted


def mean_row(method: str, rows: Sequence[ResultRow], gains: Sequence[Gain]) -> ResultRow:
    """The plain mean over domains, so that a domain of many prompts weighs no more than another."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    decoding = [gained.decoding for gained in gains if gained.decoding is not None]
    return ResultRow(
        method=method,
        domain=MEAN,
        prompts=sum(row.prompts for row in rows),
        tokens=sum(row.tokens for row in rows),
        tokens_per_second=sum(row.tokens_per_second for row in rows) / len(rows),
        speedup=interval(np.mean([gained.whole for gained in gains], axis=0)),
        decode_speedup=interval(np.mean(decoding, axis=0)) if decoding else None,
        acceptance=mean([row.acceptance for row in rows]),
        mean_accepted_length=mean([row.mean_accepted_length for row in rows]),
        exact=mean([row.exact for row in rows]),
    )


HEAD = ["method", "domain", "prompts", "tokens", "tokens/s"]
HEAD += ["speed-up", "95 %", "decode", "acceptance", "length", "exact", "paper"]


def figures(row: ResultRow) -> tuple[float | None, float | None, float | None]:
    """(speed-up of decoding, acceptance, mean accepted length)."""
    decoding = row.decode_speedup.median if row.decode_speedup else None
    return decoding, row.acceptance, row.mean_accepted_length


def published(row: ResultRow) -> str:
    """What the paper of a method reports, beside the mean over domains."""
    known = methods().get(row.method)
    return known.published if known and row.domain == MEAN else ""


def table(rows: Sequence[ResultRow]) -> str:
    """The rows as plain text in aligned columns."""
    lines = [HEAD] + [
        [
            row.method,
            row.domain,
            str(row.prompts),
            str(row.tokens),
            f"{row.tokens_per_second:.1f}",
            f"{row.speedup.median:.2f}",
            f"{row.speedup.low:.2f}-{row.speedup.high:.2f}",
            *("-" if value is None else f"{value:.2f}" for value in figures(row)),
            "-" if row.exact is None else f"{row.exact:.0%}",
            published(row) or "-",
        ]
        for row in rows
    ]
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells as columns: the first two hold names, the others numbers, which end below each other."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    formats = [f"{{:{'<' if i < 2 else '>'}{width}}}" for i, width in enumerate(widths)]
    return "\n".join("  ".join(formats).format(*line) for line in lines)
