"""What was gained over the last five minutes: exact on a clock that the test moves."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine import RowStats, StepStats
from server.telemetry.metrics import Metrics
from server.telemetry.window import INTERVAL, SECONDS, Window

KEY = ("tokens", "sql")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.tuples(st.floats(0, 400), st.integers(1, 9)), max_size=40), st.floats(0, 700))
def test_all_of_the_window_is_counted_and_little_before_it(steps: list[tuple[float, int]], rest: float) -> None:
    clock, total, counted = Clock(), 0, []
    window = Window(lambda: {KEY: float(total)}, clock)
    for pause, tokens in steps:
        clock.now += pause
        window.sample()
        total += tokens
        counted.append((clock.now, tokens))
    clock.now += rest
    first = clock.now - SECONDS
    at_least = sum(tokens for at, tokens in counted if at >= first + INTERVAL)
    at_most = sum(tokens for at, tokens in counted if at >= first)
    assert at_least <= window.gained()[KEY] <= at_most


def test_few_samples_are_kept() -> None:
    clock = Clock()
    window = Window(lambda: {KEY: clock.now}, clock)
    for _ in range(100_000):
        clock.now += 0.1
        window.sample()
    assert len(window.samples) <= SECONDS / INTERVAL + 1


def test_a_step_is_counted_where_it_was_decoded() -> None:
    metrics = Metrics()
    rows = [RowStats("sql", 4, 2, 3), RowStats("sql", 0, 0, 1), RowStats("chat", 2, 2, 3)]
    metrics.observe_step(StepStats(decode_seconds=0.5, rows=rows))
    gained = metrics.window.gained()
    assert [gained[figure, "sql"] for figure in ("tokens", "seconds", "drafted", "accepted")] == [4, 1.0, 4, 2]
    assert [gained[figure, "chat"] for figure in ("tokens", "seconds", "drafted", "accepted")] == [3, 0.5, 2, 2]
    assert gained["decode", ""] == 0.5
