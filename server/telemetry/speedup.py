"""The live speed-up over plain decoding with its 95 % band, from running sums over decode steps.

A small share of the steps, one in 64 by default, runs plainly on purpose. In either kind of step a token costs
c = sum(w s) / sum(w t): t is the number of tokens that a step emitted, s its seconds times its sequences, and w
its weight, which fades with age. The speed-up is the cost in plain steps over the cost in the others: 30 ms
over 20 ms is 1.5.

The variance of c follows from the residuals s - c t, as for any ratio of sums (delta method). The relative
variances of both costs add up to the square of the error, and the band is the speed-up times exp(-+1.96 error).
Steps count as independent of each other.
"""

import math
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

from server.engine import StepStats

FEWEST_STEPS = 4
"""Fewest steps of a kind for a band; fewer say too little about their own scatter."""
NORMAL_95 = 1.96


@dataclass
class CostSums:
    """Running sums over steps of one kind; the second powers carry squared weights."""

    steps: float = 0.0
    seconds: float = 0.0
    tokens: float = 0.0
    steps_squared: float = 0.0
    seconds_squared: float = 0.0
    seconds_tokens: float = 0.0
    tokens_squared: float = 0.0

    def fade(self, factor: float) -> None:
        self.steps *= factor
        self.seconds *= factor
        self.tokens *= factor
        self.steps_squared *= factor**2
        self.seconds_squared *= factor**2
        self.seconds_tokens *= factor**2
        self.tokens_squared *= factor**2

    def add(self, seconds: float, tokens: int) -> None:
        self.steps += 1
        self.seconds += seconds
        self.tokens += tokens
        self.steps_squared += 1
        self.seconds_squared += seconds**2
        self.seconds_tokens += seconds * tokens
        self.tokens_squared += tokens**2

    @property
    def cost(self) -> float | None:
        """Seconds of a token; None before the first one."""
        return self.seconds / self.tokens if self.tokens and self.seconds else None

    @property
    def relative_variance(self) -> float | None:
        """The variance of the cost over its square; None while there are too few steps."""
        cost = self.cost
        num_steps = self.steps**2 / self.steps_squared if self.steps_squared else 0.0
        if cost is None or num_steps < FEWEST_STEPS * (1 - 1e-9):
            return None
        residuals = self.seconds_squared - 2 * cost * self.seconds_tokens + cost**2 * self.tokens_squared
        return max(residuals, 0.0) / self.seconds**2 * num_steps / (num_steps - 1)


class SpeedupMeter:
    """The speed-up and its band; older steps weigh less, so that both follow the traffic."""

    decay = 1 - 1 / 4096
    """A step's weight halves about every 2,800 steps, some 40 baseline steps at the usual share."""

    def __init__(self) -> None:
        self.plain = CostSums()
        self.others = CostSums()

    def observe(self, seconds: float, tokens: int, is_baseline: bool) -> None:
        """Adds a step: its seconds times its sequences (0.02 s of three are 0.06), and the tokens it emitted."""
        self.plain.fade(self.decay)
        self.others.fade(self.decay)
        (self.plain if is_baseline else self.others).add(seconds, tokens)

    @property
    def speedup(self) -> float | None:
        """Cost of a token in plain steps over that in the others; None until both kinds were seen."""
        plain, others = self.plain.cost, self.others.cost
        return None if plain is None or others is None else plain / others

    @property
    def band(self) -> tuple[float, float] | None:
        """The 95 % band around the speed-up; None while there are too few steps of either kind."""
        speedup, plain, others = self.speedup, self.plain.relative_variance, self.others.relative_variance
        if speedup is None or plain is None or others is None:
            return None
        # Beyond e^9 a wider band says nothing more, and it must not overflow.
        factor = math.exp(min(NORMAL_95 * math.sqrt(plain + others), 9.0))
        return speedup / factor, speedup * factor


class Speedups(Collector):
    """Meters of all traffic and of each domain, as gauges; a gauge is absent while its value is unknown."""

    def __init__(self) -> None:
        self.overall = SpeedupMeter()
        self.domains: defaultdict[str, SpeedupMeter] = defaultdict(SpeedupMeter)
        # Written by the engine's thread, read by whoever asks for metrics.
        self.lock = threading.Lock()

    def observe(self, stats: StepStats) -> None:
        """Adds a step; one that read prompts too says nothing of drafts."""
        if stats.prefill_tokens:
            return
        emitted: defaultdict[str, list[int]] = defaultdict(list)
        for row in stats.rows:
            emitted[row.domain].append(row.num_emitted)
        with self.lock:
            all_emitted = [num for nums in emitted.values() for num in nums]
            self.overall.observe(stats.decode_seconds * len(all_emitted), sum(all_emitted), stats.is_baseline)
            for domain, nums in emitted.items():
                self.domains[domain].observe(stats.decode_seconds * len(nums), sum(nums), stats.is_baseline)

    def of(self, domain: str) -> float | None:
        """The speed-up of a domain's sequences; None while it is unknown."""
        with self.lock:
            meter = self.domains.get(domain)
            return meter.speedup if meter else None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self.lock:
            yield from families("knnssd_speculation_speedup", [], {(): self.overall})
            by_domain = {(domain,): meter for domain, meter in self.domains.items()}
            yield from families("knnssd_speculation_domain_speedup", ["domain"], by_domain)


def families(
    name: str, labels: list[str], meters: dict[tuple[()], SpeedupMeter] | dict[tuple[str], SpeedupMeter]
) -> list[GaugeMetricFamily]:
    """The speed-up and both ends of its band, each a family of its own."""
    value = GaugeMetricFamily(name, "Measured speed-up over plain decoding", labels=labels)
    low = GaugeMetricFamily(f"{name}_low", "Lower end of the speed-up's 95 % band", labels=labels)
    high = GaugeMetricFamily(f"{name}_high", "Upper end of the speed-up's 95 % band", labels=labels)
    for key, meter in meters.items():
        if meter.speedup is not None:
            value.add_metric(key, meter.speedup)
        if meter.band is not None:
            low.add_metric(key, meter.band[0])
            high.add_metric(key, meter.band[1])
    return [value, low, high]
