"""Times passes of a model on this machine."""

import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np


def interleaved_quartiles(timers: Sequence[Callable[[], None]], rounds: Iterable[object]) -> list[float]:
    """Lower quartile of the seconds of each, after one warm-up, all timed in turn in every round."""
    samples: list[list[float]] = [[] for _ in timers]
    for timer in timers:
        timer()
    for _ in rounds:
        for timer, sample in zip(timers, samples, strict=True):
            started = time.perf_counter()
            timer()
            sample.append(time.perf_counter() - started)
    return [float(np.quantile(sample, 0.25)) for sample in samples]
