"""Which drafter a sequence uses now: the one that yields most tokens a second by what was measured so far.

A way of drafting (an arm) has a gain, the tokens that its drafts had accepted, and a cost, the
seconds of a step that uses it. Gains are averaged for each sequence and start from its domain's
average; costs are medians for each size of batch. Where no arm promises 2 % more than decoding
plainly, the sequence is decoded plainly, and tries again now and then; in a domain whose drafts lose
in general its sequences take these trials in turn. None of this changes text.
"""

from collections import defaultdict, deque
from collections.abc import Hashable
from statistics import median

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
    """Counts the plain steps of a sequence or domain whose drafts lose, until the next trial."""

    def __init__(self) -> None:
        self.length = FIRST_REST
        self.steps = 0

    def is_over(self) -> bool:
        self.steps += 1
        if self.steps <= self.length:
            return False
        self.length = min(2 * self.length, LONGEST_REST)
        self.steps = 0
        return True


class DraftPolicy:
    """Chooses an arm for each sequence and learns from each step."""

    def __init__(self) -> None:
        self.domain_gains: dict[tuple[str, Method], Average] = defaultdict(lambda: Average(64, FIRST_GAIN))
        self.gains: dict[tuple[int, Method], Average] = {}
        self.seconds: dict[tuple[int, Method], Typical] = defaultdict(lambda: Typical(9))
        self.rests: dict[Hashable, Rest] = defaultdict(Rest)

    def choose(self, sequence: Sequence, has_match: bool, num_rows: int) -> Method:
        """PLAIN, SKIP or LOOKUP; `has_match` says whether a lookup would find something."""
        size = size_class(num_rows)
        arms = [arm for arm in ARMS[sequence.method] if self.is_usable(arm, sequence, has_match)]
        plain = self.seconds[size, Method.PLAIN].value
        if not arms or plain is None:
            return Method.PLAIN
        rates = {arm: self.rate(arm, size, self.gain(arm, sequence)) for arm in arms}
        best = max(arms, key=lambda arm: rates[arm])
        if rates[best] >= NEEDED_GAIN / plain:
            self.rests.pop(sequence.id, None)
            return best
        in_general = self.rate(best, size, self.domain_gains[sequence.route.domain, best])
        loses_in_general = in_general < NEEDED_GAIN / plain
        rest = self.rests[(sequence.route.domain, size) if loses_in_general else sequence.id]
        return best if rest.is_over() else Method.PLAIN

    @staticmethod
    def is_usable(arm: Method, sequence: Sequence, has_match: bool) -> bool:
        return has_match if arm is Method.LOOKUP else not sequence.route.mask.is_empty

    def rate(self, arm: Method, size: int, gain: Average) -> float:
        """Expected tokens a second; infinite while the arm's cost is unknown, so that it is tried."""
        seconds = self.seconds[size, arm].value
        return float("inf") if seconds is None else (1 + gain.value) / seconds

    def gain(self, arm: Method, sequence: Sequence) -> Average:
        key = (sequence.id, arm)
        if key not in self.gains:
            self.gains[key] = Average(32, self.domain_gains[sequence.route.domain, arm].value)
        return self.gains[key]

    def observe_gain(self, arm: Method, sequence: Sequence, num_accepted: int) -> None:
        self.gain(arm, sequence).add(num_accepted)
        self.domain_gains[sequence.route.domain, arm].add(num_accepted)

    def observe_seconds(self, arms: set[Method], num_rows: int, stats: StepStats) -> None:
        """Books a step's seconds on the arms that it used: a skipping draft pays for drafting and verifying."""
        size = size_class(num_rows)
        if Method.SKIP in arms:
            self.seconds[size, Method.SKIP].add(stats.draft_seconds + stats.verify_seconds)
        if Method.LOOKUP in arms:
            self.seconds[size, Method.LOOKUP].add(stats.verify_seconds)
        if not arms - {Method.PLAIN}:
            self.seconds[size, Method.PLAIN].add(stats.verify_seconds)

    def forget(self, sequence: Sequence) -> None:
        self.rests.pop(sequence.id, None)
        for arm in Method:
            self.gains.pop((sequence.id, arm), None)


def size_class(num_rows: int) -> int:
    """Batches of 1, 2, 3-4, 5-8, ... sequences cost about the same."""
    return (num_rows - 1).bit_length()
