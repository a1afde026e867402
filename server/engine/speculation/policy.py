"""Which drafter a sequence uses now: the one that promises most tokens a second by what was measured so far.

A drafter has a gain, the tokens that its drafts had accepted, and a price, the seconds that a draft adds
to a step. If a plain step takes 8 ms, and a draft of which two tokens are accepted adds 4 ms, the step
yields 3 tokens in 12 ms: 250 tokens a second in place of 125. Gains are averaged for each sequence and
start from the average of its kind, its domain at its temperature; prices are medians for each size of batch.
What a drafter promises itself is believed as far as its promises came true where its drafts were checked: the one that
promises most is often one that promises too much.

Where no drafter promises 2 % more than decoding plainly, or 6 % where it takes passes, the sequence is decoded
plainly, and tries again after 4, 8, 16, up to 64 steps. In a domain whose drafts lose in general its sequences
take these trials in turn. None of this changes text.
"""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import NamedTuple

from server.engine.sequence import Kind, Sequence
from server.engine.speculation.averages import Average, Trust
from server.engine.speculation.base import DRAFTERS, Draft
from server.engine.speculation.prices import Prices, size_class
from server.engine.types import PLAIN, StepStats

NEEDED_GAIN, NEEDED_GAIN_OF_PASSES = 1.02, 1.06
"""Times plain decoding that a draft has to promise: the best of averages over few tries is often luck."""
FIRST_REST = 4
LONGEST_REST = 64
"""Steps that a losing sequence is decoded plainly before it tries again; twice as many after each trial."""
KIND_MEMORY, TRUST_MEMORY = 64, 32
"""Drafts that the average gain of a kind of sequence reaches back, and how far its drafters are trusted."""
FIRST_TRUST, FIRST_SHARE = 8, 16
"""Drafts that came true as promised, and picks, which a drafter is credited with in each kind of sequence."""
FIRST_GAIN = 1.5
"""Accepted tokens a draft is credited with before anything was measured."""
FIRST_ROW_PRICE, LEAST_ROW_PRICE = 0.3, 0.01
"""Share of a plain step that a row takes before it was measured, and at least: what is measured under it is chance."""
FIRST_BONUS = 0.2
LEAST_SHARE, SHARE_MEMORY = 0.1, 64
"""Share of steps in which a drafter beside the first of its method has to be picked, or it is asked now and then."""
PRICED, TREES, ASKED = "priced", "trees", "asked"
"""Keys of rests: of drafts that are refused for their price, of trees of which the chain alone is faster, of drafters
that are hardly ever picked."""
HURDLE = 1.2
"""What a step's time brings anyway, as a multiple of plain decoding: a row has to bring more."""


class Option(NamedTuple):
    """A draft that could be checked: its rows, 0 where that takes passes, and the tokens it expects to gain."""

    length: int = 0
    promise: float | None = None
    is_tree: bool = False


class Rest:
    """Counts the plain steps of a sequence or domain whose drafts lose, until the next trial.

    All of a batch wait for a trial, so in a batch of eight it is eight times rarer.
    """

    def __init__(self) -> None:
        self.length = FIRST_REST
        self.steps = 0

    def is_over(self, num_rows: int) -> bool:
        self.steps += 1
        if self.steps <= self.length * num_rows:
            return False
        self.length = min(2 * self.length, LONGEST_REST)
        self.steps = 0
        return True


class DraftPolicy:
    """Picks a drafter for each sequence, and learns from each step what drafts gain and cost."""

    def __init__(self) -> None:
        self.gains_of_kinds: dict[tuple[Kind, str], Average] = defaultdict(lambda: Average(KIND_MEMORY, FIRST_GAIN))
        self.gains: dict[tuple[int, str], Average] = {}
        self.trusts: dict[tuple[Kind, str], Trust] = defaultdict(lambda: Trust(TRUST_MEMORY, weight=FIRST_TRUST))
        self.shares: dict[tuple[Kind, str], Average] = defaultdict(lambda: Average(SHARE_MEMORY, 1.0, FIRST_SHARE))
        self.promised: dict[int, float] = {}
        """Tokens that the draft promised that was picked for a sequence."""
        self.bonuses: dict[str, Average] = defaultdict(lambda: Average(KIND_MEMORY, FIRST_BONUS))
        """What the branches of a drafter's trees bring beside its chains."""
        self.prices: dict[int, Prices] = defaultdict(Prices)
        """By the class of the batch's size."""
        self.rests: dict[Hashable, Rest] = defaultdict(Rest)

    def pick(self, sequence: Sequence, options: Mapping[str, Option], num_rows: int) -> str:
        """The name of one of `options`, the drafters that could draft now, or `plain`."""
        name = self.choice(sequence, options, num_rows)
        promise = options[name].promise if name != PLAIN else None
        if promise is not None:
            self.promised[sequence.id] = promise
        return name

    def asks(self, drafter: str, sequence: Sequence) -> bool:
        """Whether a free drafter beside the first of a sequence's method is to propose in this step.

        Where it is hardly ever picked, its proposals cost time and are sometimes picked for luck.
        """
        key = ASKED, sequence.kind, drafter
        if self.shares[sequence.kind, drafter].value >= LEAST_SHARE:
            self.rests.pop(key, None)
            return True
        return self.rests[key].is_over(1)

    def observe_pick(self, drafter: str, sequence: Sequence, is_picked: bool) -> None:
        self.shares[sequence.kind, drafter].add(is_picked)

    def choice(self, sequence: Sequence, options: Mapping[str, Option], num_rows: int) -> str:
        """What `pick` returns."""
        # 1) Without a plain step to compare with, there is nothing to decide by.
        prices = self.prices[size_class(num_rows)]
        if not options or prices.plain.value is None:
            return PLAIN
        # 2) The best by what it promises, or by this sequence's own gains, if it is worth it.
        best, highest = PLAIN, 0.0
        for name, option in options.items():
            gain = self.expected(name, sequence, option.promise)
            gain += self.bonuses[name].value if option.is_tree else 0
            rate = prices.rate(name, sequence.route.draft.kind, option.length, gain, num_rows)
            if rate >= max(needed_gain(name) / prices.plain.value, highest):
                best, highest = name, rate
        if best != PLAIN:
            self.rests.pop(sequence.id, None)
            return best
        # 3) Else plainly until the next trial. What promises too little now will promise more at a better place, but is
        #    tried now and then, for its price may be of a moment when the machine was slow.
        untold = {name: option.length for name, option in options.items() if option.promise is None}
        if len(untold) < len(options) and self.rests[PRICED, size_class(num_rows)].is_over(num_rows):
            return max(options, key=lambda name: options[name].promise or 0.0)
        return self.trial(sequence, untold, num_rows) if untold else PLAIN

    def trial(self, sequence: Sequence, options: Mapping[str, int], num_rows: int) -> str:
        """The best of the losing drafters where a trial is due: of the sequence, or of its kind if that loses too."""
        size, kind = size_class(num_rows), sequence.route.draft.kind
        prices = self.prices[size]
        rates = {
            name: prices.rate(name, kind, length, self.gain(name, sequence).value, num_rows)
            for name, length in options.items()
        }
        best = max(rates, key=lambda name: rates[name])
        in_kind = self.gains_of_kinds[sequence.kind, best].value
        in_general = prices.rate(best, kind, options[best], in_kind, num_rows)
        assert prices.plain.value is not None
        loses_in_general = in_general < needed_gain(best) / prices.plain.value
        rest = self.rests[(sequence.kind, size) if loses_in_general else sequence.id]
        return best if rest.is_over(num_rows) else PLAIN

    def expected(self, drafter: str, sequence: Sequence, promise: float | None) -> float:
        """Tokens that a draft is expected to gain."""
        if promise is None:
            return self.gain(drafter, sequence).value
        return promise * self.trusts[sequence.kind, drafter].value

    def gain(self, drafter: str, sequence: Sequence) -> Average:
        key = (sequence.id, drafter)
        if key not in self.gains:
            first = self.gains_of_kinds[sequence.kind, drafter].value
            self.gains[key] = Average(DRAFTERS[drafter].memory, first)
        return self.gains[key]

    def observe_gain(self, drafter: str, sequence: Sequence, num_accepted: int) -> None:
        self.gain(drafter, sequence).add(num_accepted)
        self.gains_of_kinds[sequence.kind, drafter].add(num_accepted)

    def observe_check(self, drafter: str, sequence: Sequence, num_accepted: int) -> None:
        """Of the draft that was picked, and checked."""
        if promised := self.promised.pop(sequence.id, None):
            self.trusts[sequence.kind, drafter].add(promised, num_accepted)

    def observe_bonus(self, drafter: str, num_tokens: float) -> None:
        self.bonuses[drafter].add(num_tokens)

    def prefers_tree(self, tree: Draft, num_rows: int) -> bool:
        """Whether it promises more tokens a second than its chain, by what checks of so many rows took; now and then.

        A price of rows is a small difference of large times. Here both have it, so that it does not decide.
        """
        name, prices, bonus = tree.drafter, self.prices[size_class(num_rows)], self.bonuses[tree.drafter].value
        gain = self.mean_gain(name)
        alone = prices.rate(name, tree.kind, len(tree.ids), gain, num_rows)
        together = prices.rate(name, tree.kind, tree.num_rows, gain + bonus, num_rows)
        key = TREES, name, size_class(num_rows)
        if together >= alone:
            self.rests.pop(key, None)
            return True
        return self.rests[key].is_over(num_rows)

    def mean_gain(self, drafter: str) -> float:
        """Over the sequences that it drafts for now."""
        gains = [average.value for (_, name), average in self.gains.items() if name == drafter]
        return sum(gains) / len(gains) if gains else FIRST_GAIN

    def row_price(self, num_rows: int) -> float:
        """What a drafted token has to bring: the share of a plain step that its row takes from all of the batch."""
        measured = self.prices[size_class(num_rows)].row.value
        return HURDLE * (FIRST_ROW_PRICE if measured is None else max(measured, LEAST_ROW_PRICE))

    def observe_seconds(self, drafts: list[Draft], num_rows: int, stats: StepStats) -> None:
        self.prices[size_class(num_rows)].add(drafts, num_rows, stats)

    def forget(self, sequence: Sequence) -> None:
        self.rests.pop(sequence.id, None)
        self.promised.pop(sequence.id, None)
        for name in DRAFTERS:
            self.gains.pop((sequence.id, name), None)


def needed_gain(drafter: str) -> float:
    return NEEDED_GAIN if DRAFTERS[drafter].is_free else NEEDED_GAIN_OF_PASSES
