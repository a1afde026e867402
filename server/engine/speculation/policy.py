"""Which drafter a sequence uses now: the one that yields most tokens a second by what was measured so far.

A way of drafting (an arm) has a gain, the tokens that its drafts had accepted, and a cost, the
seconds that a draft adds to a step. Gains are averaged for each sequence and start from its domain's
average; costs are medians for each size of batch. Where no arm promises 2 % more than decoding
plainly, the sequence is decoded plainly, and tries again now and then; in a domain whose drafts lose
in general its sequences take these trials in turn. None of this changes text.
"""

from collections import defaultdict, deque
from collections.abc import Hashable
from statistics import median
from typing import NamedTuple, Self

from server.engine.sequence import Sequence
from server.engine.types import Method, StepStats

ARMS = {
    Method.PLAIN: (),
    Method.SKIP: (Method.SKIP,),
    Method.LOOKUP: (Method.LOOKUP,),
    Method.CASCADE: (Method.LOOKUP, Method.SKIP),
}
NEEDED_GAIN = 1.02
FIRST_REST = 4
LONGEST_REST = 64
"""Steps that a losing sequence is decoded plainly before it tries again; twice as many after each trial."""
MEMORY = {Method.SKIP: 32, Method.LOOKUP: 6}
"""Drafts that a sequence's average gain reaches back: a copied passage begins and ends at once."""
FIRST_GAIN = 1.5
"""Accepted tokens a draft is credited with before anything was measured."""


class Average:
    """An exponential moving average that starts as a plain mean, of which `first` is one value."""

    def __init__(self, memory: int, first: float) -> None:
        self.memory = memory
        self.value = first
        self.count = 1

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, self.memory)
        self.value += (value - self.value) / self.count


class Typical:
    """The median of the latest values: a step that the machine delayed must not decide for an arm."""

    def __init__(self, memory: int) -> None:
        self.latest: deque[float] = deque(maxlen=memory)

    def add(self, value: float) -> None:
        self.latest.append(value)

    @property
    def value(self) -> float | None:
        return median(self.latest) if self.latest else None


class Rest:
    """Counts the plain steps of a sequence or domain whose drafts lose, until the next trial.

    All of a batch wait for a trial, so it is as many times rarer as there are rows.
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


class Draft(NamedTuple):
    """Drafted ids and the arm that they came from."""

    ids: list[int]
    arm: Method


class Cost(NamedTuple):
    """What shares one price: an arm, batches of about one size, and looked-up drafts of about one length."""

    arm: Method
    size: int
    length: int

    @classmethod
    def of(cls, arm: Method, num_rows: int, num_found: int = 0) -> Self:
        return cls(arm, size_class(num_rows), size_class(num_found) if arm is Method.LOOKUP else 0)


class DraftPolicy:
    """Chooses an arm for each sequence and learns from each step."""

    def __init__(self) -> None:
        self.domain_gains: dict[tuple[str, Method], Average] = defaultdict(lambda: Average(64, FIRST_GAIN))
        self.gains: dict[tuple[int, Method], Average] = {}
        self.plain_seconds: dict[int, Typical] = defaultdict(lambda: Typical(9))
        self.extra_seconds: dict[Cost, Typical] = defaultdict(lambda: Typical(9))
        self.rests: dict[Hashable, Rest] = defaultdict(Rest)

    def choose(self, sequence: Sequence, num_found: int, num_rows: int) -> Method:
        """PLAIN, SKIP or LOOKUP; `num_found` is the length of what a lookup would draft."""
        plain = self.plain_seconds[size_class(num_rows)].value
        costs = {arm: Cost.of(arm, num_rows, num_found) for arm in self.usable_arms(sequence, num_found)}
        if not costs or plain is None:
            return Method.PLAIN
        rates = {arm: self.rate(cost, self.gain(arm, sequence), plain, num_rows) for arm, cost in costs.items()}
        best = max(rates, key=lambda arm: rates[arm])
        if rates[best] >= NEEDED_GAIN / plain:
            self.rests.pop(sequence.id, None)
            return best
        in_general = self.rate(costs[best], self.domain_gains[sequence.route.domain, best], plain, num_rows)
        loses_in_general = in_general < NEEDED_GAIN / plain
        rest = self.rests[(sequence.route.domain, size_class(num_rows)) if loses_in_general else sequence.id]
        return best if rest.is_over(num_rows) else Method.PLAIN

    @staticmethod
    def usable_arms(sequence: Sequence, num_found: int) -> list[Method]:
        is_usable = {Method.LOOKUP: num_found > 0, Method.SKIP: not sequence.route.mask.is_empty}
        return [arm for arm in ARMS[sequence.method] if is_usable[arm]]

    def rate(self, cost: Cost, gain: Average, plain: float, num_rows: int) -> float:
        """Expected tokens a second if all of the batch did so, for what one drafts all wait for.

        Infinite while the arm's cost is unknown, so that it is tried.
        """
        extra = self.extra_seconds[cost].value
        return float("inf") if extra is None else (1 + gain.value) / (plain + num_rows * max(extra, 0.0))

    def gain(self, arm: Method, sequence: Sequence) -> Average:
        key = (sequence.id, arm)
        if key not in self.gains:
            self.gains[key] = Average(MEMORY[arm], self.domain_gains[sequence.route.domain, arm].value)
        return self.gains[key]

    def observe_gain(self, arm: Method, sequence: Sequence, num_accepted: int) -> None:
        self.gain(arm, sequence).add(num_accepted)
        self.domain_gains[sequence.route.domain, arm].add(num_accepted)

    def observe_seconds(self, drafts: list[Draft], num_rows: int, stats: StepStats) -> None:
        """Books what a step took beyond a plain one on its drafts: checks by their length, drafting on who drafted.

        Few that skip in a large batch pay alone for passes that more would share, so their price is not taken.
        """
        typical = self.plain_seconds[size_class(num_rows)]
        if not drafts:
            typical.add(stats.verify_seconds)
        if not drafts or typical.value is None:
            return
        per_token = (stats.verify_seconds - typical.value) / sum(len(draft.ids) for draft in drafts)
        for arm, drafting_seconds in ((Method.SKIP, stats.draft_seconds), (Method.LOOKUP, 0.0)):
            lengths = [len(draft.ids) for draft in drafts if draft.arm is arm]
            if not lengths:
                continue
            price = self.extra_seconds[Cost.of(arm, num_rows, max(lengths))]
            if arm is Method.LOOKUP or price.value is None or 2 * len(lengths) >= num_rows:
                price.add((drafting_seconds + per_token * sum(lengths)) / len(lengths))

    def forget(self, sequence: Sequence) -> None:
        self.rests.pop(sequence.id, None)
        for arm in Method:
            self.gains.pop((sequence.id, arm), None)


def size_class(number: int) -> int:
    """Batches (or drafts) of 1, 2, 3-4, 5-8, ... cost about the same."""
    return max(number - 1, 0).bit_length()
