"""Scores drafts in heats: every draft on a few texts, and only those that keep up on all of them.

Of sixteen texts, four are the first heat. A draft that is more than 3 % slower there than the best one so far
gets no second heat: its score is the best one's, less the same share. Most drafts of a search are such ones,
so a search costs little more than a quarter of what scoring all on everything would.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.drafts import DraftChoice, DraftParts
from offline.calibration.scoring.replay import Trace
from offline.calibration.scoring.score import PLAIN_SCORE, DraftScorer, Score, best_score
from server.engine import Decoder

HEAT_TEXTS = 4
"""Texts of a domain in the first heat, half of them of either half of its texts."""
MARGIN = 0.03
"""How much slower than the best a draft may be in the first heat: about the noise of four texts."""
HALVES = (0, 1)
FIRST_HEAT, ALL_HEATS = (0,), (0, 1)

Objective = Callable[[DraftChoice, DraftChoice | None], Score]
"""The score of a draft, given the best one so far, or None where it is the first."""


class DomainTraces:
    """Traces of any draft on a domain's search texts. A pass is made once, whichever search asks for it again.

    The texts lie in two halves (every other text), for control searches that see only one, and each half in two
    heats.
    """

    def __init__(self, model: Decoder, parts: DraftParts, texts: Sequence[Text]) -> None:
        self.model = model
        self.parts = parts
        self.texts = texts
        # So few texts are not worth a heat of their own.
        num_first = HEAT_TEXTS // 2 if len(texts) >= 2 * HEAT_TEXTS else len(texts)
        self.heats = {(half, 0): texts[half::2][:num_first] for half in HALVES}
        self.heats |= {(half, 1): texts[half::2][num_first:] for half in HALVES}
        self.scorers: dict[tuple[int, int], DraftScorer] = {}
        self.known: dict[tuple[int, int, DraftChoice], list[Trace]] = {}

    def traces(self, choice: DraftChoice, halves: Sequence[int], heats: Sequence[int]) -> list[Trace]:
        return [trace for half in halves for heat in heats for trace in self.part_traces(choice, half, heat)]

    def part_traces(self, choice: DraftChoice, half: int, heat: int) -> list[Trace]:
        key = (half, heat, choice)
        if key not in self.known:
            if (half, heat) not in self.scorers:
                self.scorers[half, heat] = DraftScorer(self.model, self.parts, self.heats[half, heat])
            self.known[key] = self.scorers[half, heat].traces(choice)
        return self.known[key]

    def release(self) -> None:
        """Gives back the memory of the texts' keys and values; traces stay known."""
        self.scorers.clear()


@dataclass(frozen=True)
class Race:
    """Predicted speed of drafts on the search texts of one domain or several, or on one half of them.

    Each is replayed by the rule that suits it best there.
    """

    domains: Sequence[DomainTraces]
    cost: CostModel
    halves: tuple[int, ...] = HALVES

    def __call__(self, choice: DraftChoice, leader: DraftChoice | None) -> Score:
        if leader is None:
            return self.score(choice, ALL_HEATS)
        first, ahead = self.score(choice, FIRST_HEAT), self.score(leader, FIRST_HEAT)
        if first.speedup >= (1 - MARGIN) * ahead.speedup:
            return self.score(choice, ALL_HEATS)
        whole = self.score(leader, ALL_HEATS)
        return Score(speedup=whole.speedup * first.speedup / ahead.speedup, acceptance=first.acceptance)

    def score(self, choice: DraftChoice, heats: Sequence[int]) -> Score:
        if choice.is_full:
            return PLAIN_SCORE
        traces = [trace for domain in self.domains for trace in domain.traces(choice, self.halves, heats)]
        return best_score(traces, choice, self.cost)
