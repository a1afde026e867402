"""Scores masks in heats: every mask on a few texts, and only those that keep up on all of them.

Of sixteen texts, four are the first heat. A mask that is more than 3 % slower there than the best mask so far
gets no second heat: its score is the best mask's, less the same share. Most masks of a search are such ones,
so a search costs little more than a quarter of what scoring all on everything would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.replay import DraftRule, Trace
from offline.calibration.scoring.score import MaskScorer, Score, score_traces
from server.engine import Decoder, SkipMask

HEAT_TEXTS = 4
"""Texts of a domain in the first heat, half of them of either half of its texts."""
MARGIN = 0.03
"""How much slower than the best a mask may be in the first heat: about the noise of four texts."""
HALVES = (0, 1)
FIRST_HEAT, ALL_HEATS = (0,), (0, 1)

Objective = Callable[[SkipMask, SkipMask | None], Score]
"""The score of a mask, given the best one so far, or None where it is the first."""


class DomainTraces:
    """Traces of any mask on a domain's search texts. A pass is made once, whichever search asks for it again.

    The texts lie in two halves (every other text), for control searches that see only one, and each half in two
    heats.
    """

    def __init__(self, model: Decoder, texts: Sequence[Text]) -> None:
        self.model = model
        self.texts = texts
        # So few texts are not worth a heat of their own.
        num_first = HEAT_TEXTS // 2 if len(texts) >= 2 * HEAT_TEXTS else len(texts)
        self.parts = {(half, 0): texts[half::2][:num_first] for half in HALVES}
        self.parts |= {(half, 1): texts[half::2][num_first:] for half in HALVES}
        self.scorers: dict[tuple[int, int], MaskScorer] = {}
        self.known: dict[tuple[int, int, SkipMask], list[Trace]] = {}

    def traces(self, mask: SkipMask, halves: Sequence[int], heats: Sequence[int]) -> list[Trace]:
        return [trace for half in halves for heat in heats for trace in self.part_traces(mask, half, heat)]

    def part_traces(self, mask: SkipMask, half: int, heat: int) -> list[Trace]:
        key = (half, heat, mask)
        if key not in self.known:
            if (half, heat) not in self.scorers:
                self.scorers[half, heat] = MaskScorer(self.model, self.parts[half, heat])
            self.known[key] = self.scorers[half, heat].traces(mask)
        return self.known[key]

    def release(self) -> None:
        """Gives back the memory of the texts' keys and values; traces stay known."""
        self.scorers.clear()


@dataclass(frozen=True)
class Race:
    """Predicted speed of masks on the search texts of one domain or several, or on one half of them."""

    domains: Sequence[DomainTraces]
    rule: DraftRule
    cost: CostModel
    halves: tuple[int, ...] = HALVES

    def __call__(self, mask: SkipMask, leader: SkipMask | None) -> Score:
        if leader is None:
            return self.score(mask, ALL_HEATS)
        first, ahead = self.score(mask, FIRST_HEAT), self.score(leader, FIRST_HEAT)
        if first.speedup >= (1 - MARGIN) * ahead.speedup:
            return self.score(mask, ALL_HEATS)
        whole = self.score(leader, ALL_HEATS)
        return Score(speedup=whole.speedup * first.speedup / ahead.speedup, acceptance=first.acceptance)

    def score(self, mask: SkipMask, heats: Sequence[int]) -> Score:
        return score_traces(self.traces(mask, heats), mask, self.rule, self.cost)

    def traces(self, mask: SkipMask, heats: Sequence[int]) -> list[Trace]:
        return [trace for domain in self.domains for trace in domain.traces(mask, self.halves, heats)]
