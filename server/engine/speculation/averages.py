"""Figures that are measured as decoding goes on: means that forget, and medians that one slow step does not move."""

from collections import deque


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
    """The median of the latest values, of two the upper: one step that the machine delayed must not decide."""

    def __init__(self, memory: int) -> None:
        self.latest: deque[float] = deque(maxlen=memory)
        self.value: float | None = None

    def add(self, value: float) -> None:
        self.latest.append(value)
        self.value = sorted(self.latest)[len(self.latest) // 2]
