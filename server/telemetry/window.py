"""What running totals gained over the last minutes, from samples of them."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

SECONDS = 300.0
"""How far back it reaches."""
INTERVAL = 10.0
"""Seconds between samples, and by how much less it may reach back."""

Totals = Mapping[tuple[str, str], float]
"""By the name of a figure and a domain."""


class Window:
    """Samples of what `read` gives, which only ever grows, and only when `sample` was called before."""

    def __init__(self, read: Callable[[], Totals], clock: Callable[[], float] = time.monotonic) -> None:
        self.read = read
        self.clock = clock
        self.samples: deque[tuple[float, Totals]] = deque()
        # Written by the engine's thread, read by whoever asks.
        self.lock = threading.Lock()

    def sample(self) -> None:
        """Keeps the totals as they are, unless that was done less than an interval ago."""
        now = self.clock()
        if self.samples and now - self.samples[-1][0] < INTERVAL:
            return
        with self.lock:
            self.samples.append((now, self.read()))
            while self.samples[0][0] < now - SECONDS:
                self.samples.popleft()

    def gained(self) -> Totals:
        """What the totals gained: where the oldest sample is of half a minute ago, nothing was counted before it."""
        totals, first = self.read(), self.clock() - SECONDS
        with self.lock:
            before = next((each for at, each in self.samples if at >= first), totals)
        return {key: value - before.get(key, 0.0) for key, value in totals.items()}
