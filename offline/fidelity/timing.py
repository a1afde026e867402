"""Times a decode step of each variant, all of them in turn, so that a slow moment of the machine meets them alike."""

import random
import statistics
import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

from offline.evaluation.measure import SETTLING_SECONDS

ROUNDS = 25


def median_seconds(steps: Mapping[str, Callable[[], object]], seed: int) -> dict[str, float]:
    """Median seconds of each step over `ROUNDS` turns in shuffled order.

    In each turn a step runs twice and the second run counts: when decoding, the step before it was its own, and has
    left its weights in the processor's caches and its threads awake.
    """
    names, chance = list(steps), random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in tqdm(range(ROUNDS), "decode steps", delay=2, leave=False):
        chance.shuffle(names)
        for name in names:
            time.sleep(SETTLING_SECONDS)
            steps[name]()
            started = time.perf_counter()
            steps[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}
