"""The live speed-up and its band."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine import RowStats, StepStats
from server.telemetry.speedup import FEWEST_STEPS, SpeedupMeter, Speedups


def families(speedups: Speedups) -> dict[tuple[str, tuple[str, ...]], float]:
    return {(s.name, tuple(s.labels.values())): s.value for family in speedups.collect() for s in family.samples}


def decode_step(seconds: float, is_baseline: bool = False, **emitted: int) -> StepStats:
    """One sequence for each domain."""
    rows = [RowStats(domain, num - 1, num - 1, num) for domain, num in emitted.items()]
    return StepStats(decode_seconds=seconds, is_baseline=is_baseline, rows=rows)


def test_speedup_compares_time_per_token_and_sequence() -> None:
    meter = SpeedupMeter()
    meter.decay = 1.0
    meter.observe(0.1, 3, False)
    assert meter.speedup is None
    meter.observe(0.06, 1, True)
    assert meter.speedup == pytest.approx(0.06 / (0.1 / 3))
    meter.observe(0.2, 2, True)
    assert meter.speedup == pytest.approx(((0.06 + 0.2) / 3) / (0.1 / 3))


def test_gauges_are_absent_until_they_are_known() -> None:
    speedups = Speedups()
    name = "knnssd_speculation_speedup"
    speedups.observe(decode_step(0.1, sql=3))
    assert not families(speedups)
    speedups.observe(decode_step(0.1, is_baseline=True, sql=1))
    assert families(speedups)[name, ()] == pytest.approx(3, rel=0.01)
    assert (f"{name}_low", ()) not in families(speedups)
    for _ in range(FEWEST_STEPS):
        speedups.observe(decode_step(0.1, sql=3))
        speedups.observe(decode_step(0.1, is_baseline=True, sql=1))
    values = families(speedups)
    assert values[f"{name}_low", ()] <= values[name, ()] <= values[f"{name}_high", ()]


def test_each_domain_has_its_own() -> None:
    speedups = Speedups()
    for step in range(64):
        speedups.observe(decode_step(0.1, is_baseline=True, sql=1, chat=1))
        speedups.observe(decode_step(0.2, sql=6, chat=1 + step % 2))
    values = families(speedups)
    assert values["knnssd_speculation_domain_speedup", ("sql",)] == pytest.approx(3, rel=0.02)
    assert values["knnssd_speculation_domain_speedup", ("chat",)] == pytest.approx(0.75, rel=0.02)
    assert values["knnssd_speculation_domain_speedup_high", ("chat",)] < 1


def test_speedup_follows_the_traffic() -> None:
    meter = SpeedupMeter()
    for emitted in (1, 4):
        for step in range(40_000):
            is_baseline = step % 64 == 0
            meter.observe(0.1, 1 if is_baseline else emitted, is_baseline)
    assert meter.speedup == pytest.approx(4, rel=0.01)


def test_the_band_holds_the_truth_as_often_as_it_says() -> None:
    """Noisy steps of a known speed-up of 2: about 95 of 100 bands hold it."""
    rng = random.Random(0)
    num_held = 0
    for _ in range(300):
        meter = SpeedupMeter()
        for step in range(640):
            is_baseline = step % 16 == 0
            meter.observe(rng.lognormvariate(0, 0.3), 1 if is_baseline else rng.choice((1, 2, 3)), is_baseline)
        assert meter.band is not None
        num_held += meter.band[0] <= 2 <= meter.band[1]
    assert 0.91 * 300 <= num_held <= 0.99 * 300


def test_more_steps_make_the_band_narrower() -> None:
    rng = random.Random(0)
    meter = SpeedupMeter()
    widths = []
    for num_steps in (32, 512):
        for _ in range(num_steps):
            meter.observe(rng.lognormvariate(0, 0.3), 1, True)
            meter.observe(rng.lognormvariate(0, 0.3), 2, False)
        assert meter.band is not None
        widths.append(math.log(meter.band[1] / meter.band[0]))
    assert widths[1] < widths[0] / 2


@given(st.lists(st.tuples(st.floats(1e-6, 1e3), st.integers(1, 64), st.booleans()), max_size=50))
def test_the_band_is_around_the_speedup(steps: list[tuple[float, int, bool]]) -> None:
    meter = SpeedupMeter()
    for seconds, tokens, is_baseline in steps:
        meter.observe(seconds, tokens, is_baseline)
    if meter.band is not None:
        assert meter.speedup is not None
        assert 0 < meter.band[0] <= meter.speedup <= meter.band[1] < math.inf
