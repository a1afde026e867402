"""Figures that are measured as decoding goes on: means that forget, and medians that one slow step does not move."""

from collections import defaultdict, deque

from server.engine.sequence import Kind, Sequence

LEAST_TRUST = 0.05
OUTLIER, FEW = 2.0, 4
"""Times the average that a value counts as at most, once there are more than a few."""


class Average:
    """An exponential moving average that starts as a plain mean, in which `first` counts as `weight` values."""

    def __init__(self, memory: int, first: float, weight: int = 1) -> None:
        self.memory = memory
        self.value = first
        self.count = weight

    def add(self, value: float) -> None:
        self.count = min(self.count + 1, self.memory)
        self.value += (value - self.value) / self.count


class KindAverages:
    """An average for each sequence, which begins at that of its kind."""

    def __init__(self, memory: int, kind_memory: int, first: float, weight: int = 1) -> None:
        """`first` is what nothing is known of; a sequence's beginning counts as `weight` values."""
        self.memory = memory
        self.weight = weight
        self.sequences: dict[int, Average] = {}
        self.kinds: dict[Kind, Average] = defaultdict(lambda: Average(kind_memory, first))

    def __len__(self) -> int:
        """Sequences that it keeps."""
        return len(self.sequences)

    def value(self, sequence: Sequence) -> float:
        return self.of(sequence).value

    def add(self, sequence: Sequence, value: float) -> None:
        self.of(sequence).add(value)
        self.kinds[sequence.kind].add(value)

    def forget(self, sequence: Sequence) -> None:
        self.sequences.pop(sequence.id, None)

    def of(self, sequence: Sequence) -> Average:
        if sequence.id not in self.sequences:
            self.sequences[sequence.id] = Average(self.memory, self.kinds[sequence.kind].value, self.weight)
        return self.sequences[sequence.id]


class Trust:
    """How far expectations came true: what was accepted over what was expected; `first` where nothing is known."""

    def __init__(self, memory: int, first: float = 1.0, weight: int = 1) -> None:
        self.expected = Average(memory, 1.0, weight)
        self.accepted = Average(memory, first, weight)

    @property
    def value(self) -> float:
        return max(self.accepted.value / self.expected.value, LEAST_TRUST)

    def add(self, expected: float, accepted: float) -> None:
        self.expected.add(expected)
        self.accepted.add(accepted)


class Typical:
    """The median of the latest values, of two the upper: one step that the machine delayed must not decide."""

    def __init__(self, memory: int) -> None:
        self.latest: deque[float] = deque(maxlen=memory)
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.latest.append(value)
        self.value = sorted(self.latest)[len(self.latest) // 2]


class Steady:
    """A moving average of positive values that one delayed step hardly moves: none counts as more than twice it."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.average: Average | None = None

    @property
    def value(self) -> float | None:
        return self.average.value if self.average else None

    def add(self, value: float) -> None:
        if self.average is None:
            self.average = Average(self.memory, value)
        else:
            self.average.add(min(value, OUTLIER * self.average.value) if self.average.count > FEW else value)
