"""Replays the engine's drafting on recorded text, to predict tokens per second without decoding.

A trace holds, for each place of a continuation, whether the draft would have chosen the token that the full
model wrote there, and how sure it was. Replaying costs microseconds, so any draft length
and confidence can be tried without another pass.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offline.calibration.scoring.cost import LONGEST_DRAFT, CostModel
from offline.calibration.scoring.drafts import DraftChoice, DraftRule
from offline.evaluation.summary import RESAMPLES

FIRST_RULE = DraftRule(max_draft=8, confidence=0.5)
"""The rule where no text tells which is best."""
SURE = (0.2, 0.35, 0.5, 0.65, 0.8)
RULES = tuple(
    DraftRule(max_draft=length, confidence=confidence, floor=floor)
    for length in (2, 4, 6, 8, LONGEST_DRAFT)
    for confidence, floor in [(0.0, 0.0), *((sure, 0.0) for sure in SURE), *((0.0, sure) for sure in SURE)]
)


@dataclass(frozen=True)
class Trace:
    """One continuation under one draft: per place, agreement and the draft's top probability."""

    agrees: Sequence[bool]
    confidences: Sequence[float]


@dataclass
class Replay:
    """Counts of replayed verifications; `lengths` counts them by their number of drafted tokens."""

    num_emitted: int = 0
    num_accepted: int = 0
    num_passes: int = 0
    """Of the draft model: one for each drafted token, and for each that was under the floor."""
    lengths: Counter[int] = field(default_factory=Counter)

    @property
    def num_drafted(self) -> int:
        return sum(length * count for length, count in self.lengths.items())

    @property
    def acceptance(self) -> float:
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    def seconds(self, choice: DraftChoice, cost: CostModel) -> float:
        checks = sum(count * cost.verify(length + 1) for length, count in self.lengths.items())
        return checks + self.num_passes * cost.draft(choice)

    def speedup(self, choice: DraftChoice, cost: CostModel) -> float:
        """Predicted tokens per second over those of plain decoding."""
        return self.num_emitted * cost.plain / self.seconds(choice, cost) if self.num_emitted else 1.0


def replay(traces: Iterable[Trace], rule: DraftRule) -> Replay:
    """Drafts and verifies along each trace.

    As in the engine, a draft is no longer than what can still be emitted beside the token of the
    verification itself. After a wrong token the draft's confidences are those of the right prefix,
    which is the one approximation here; it concerns drafted tokens that are rejected in any case.
    """
    result = Replay()
    for trace in traces:
        at, end = 0, len(trace.agrees)
        while at < end:
            limit = min(rule.max_draft, end - at - 1)
            drafted, passes = draft_length(trace.confidences, at, limit, rule)
            wrong = (i for i in range(drafted) if not trace.agrees[at + i])
            accepted = next(wrong, drafted)
            result.lengths[drafted] += 1
            result.num_passes += passes
            result.num_accepted += accepted
            result.num_emitted += accepted + 1
            at += accepted + 1
    return result


def draft_length(confidences: Sequence[float], at: int, limit: int, rule: DraftRule) -> tuple[int, int]:
    """(tokens, passes) of a draft that begins at `at` and has at most `limit` tokens."""
    for length in range(1, limit + 1):
        top = confidences[at + length - 1]
        if top < rule.floor:
            return length - 1, length
        if top < rule.confidence:
            return length, length
    return limit, limit


def best_rule(traces: Sequence[Trace], choice: DraftChoice, cost: CostModel) -> DraftRule:
    """The rule of the grid with the highest predicted speed-up of a draft with these traces."""
    if not traces:
        return FIRST_RULE
    return max(RULES, key=lambda rule: replay(traces, rule).speedup(choice, cost))


@dataclass(frozen=True)
class Outcome:
    """Tokens and times under a draft, each an array [texts]; `seconds` are in units of a plain token's."""

    tokens: NDArray[np.float64]
    seconds: NDArray[np.float64]
    drafted: NDArray[np.float64]
    accepted: NDArray[np.float64]

    @classmethod
    def of(cls, traces: Sequence[Trace], choice: DraftChoice, rule: DraftRule, cost: CostModel) -> "Outcome":
        if choice.is_full:
            lengths = np.array([len(trace.agrees) for trace in traces], dtype=float)
            return cls(lengths, lengths, 0 * lengths, 0 * lengths)
        replays = [replay([trace], rule) for trace in traces]
        columns = [
            [each.num_emitted for each in replays],
            [each.seconds(choice, cost) / cost.plain for each in replays],
            [each.num_drafted for each in replays],
            [each.num_accepted for each in replays],
        ]
        return cls(*(np.array(column, dtype=float) for column in columns))

    def speedups(self, seed: int) -> NDArray[np.float64]:
        """Of all texts, then of each of `RESAMPLES` resamples: the same ones for every draft on the same texts."""
        return resampled_ratios(self.tokens, self.seconds, 1.0, seed)

    def acceptances(self, seed: int) -> NDArray[np.float64]:
        """Accepted of drafted tokens, in the same way."""
        return resampled_ratios(self.accepted, self.drafted, 0.0, seed)


def resampled_ratios(
    parts: NDArray[np.float64], wholes: NDArray[np.float64], of_nothing: float, seed: int
) -> NDArray[np.float64]:
    """Sum of `parts` over sum of `wholes` [n], of all and of resamples; `of_nothing` where the whole is 0."""
    count = len(parts)
    if count == 0:
        return np.full(RESAMPLES + 1, of_nothing)
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    rows = np.concatenate((np.arange(count)[None], drawn))
    totals = wholes[rows].sum(1)
    return np.where(totals > 0, parts[rows].sum(1) / np.maximum(totals, 1e-12), of_nothing)
