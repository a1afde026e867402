"""The budget of a step: it follows the seconds that were measured, between its bounds."""

import pytest

from server.engine.pace import ALONE_SECONDS, FEWEST_ALONE, FEWEST_BESIDE, Pace


def settle(pace: Pace, seconds_per_token: float, decode_seconds: float, num_steps: int = 20) -> int:
    """The budget after some steps on a machine that takes so long; a decode of 0 seconds is none."""
    for _ in range(num_steps):
        budget = pace.budget(decode_seconds > 0)
        pace.learn(budget, budget * seconds_per_token, decode_seconds)
    return pace.budget(decode_seconds > 0)


def test_alone_a_step_reads_for_a_tenth_of_a_second() -> None:
    pace = Pace(512, 0.7)
    assert pace.budget(False) == 512
    assert settle(pace, 0.0005, 0.0) == round(ALONE_SECONDS / 0.0005) == 200
    assert settle(pace, 0.00001, 0.0) == 512
    assert settle(pace, 1.0, 0.0) == FEWEST_ALONE


def test_beside_others_it_reads_for_its_share_of_the_step() -> None:
    pace = Pace(512, 0.75)
    assert pace.budget(True) == FEWEST_BESIDE
    assert settle(pace, 0.001, 0.010) == pytest.approx(30, rel=0.1)
    assert settle(pace, 0.001, 0.020, num_steps=80) == pytest.approx(60, rel=0.1)
    assert settle(pace, 0.001, 0.0005, num_steps=120) == FEWEST_BESIDE
    assert pace.budget(False) == 512, "a budget of its own"


def test_a_crowd_of_prompts_gets_more_but_no_more_than_alone() -> None:
    budgets = []
    for crowd in (0.1, 1.0, 4.0, 100.0):
        pace = Pace(512, 0.5)
        for _ in range(20):
            budget = pace.budget(True)
            pace.learn(budget, budget * 0.001, 0.02, crowd)
        budgets.append(pace.budget(True))
    assert budgets == pytest.approx([20, 20, 80, 100], rel=0.1)
    for _ in range(90):
        pace.learn(pace.budget(True), pace.budget(True) * 0.001, 0.3, 100.0)
    assert pace.budget(True) == pytest.approx(300, rel=0.1), "where a decode takes longer, its share is more"


def test_it_at_most_doubles_and_a_short_read_says_nothing_of_a_long_one() -> None:
    pace = Pace(512, 0.75)
    pace.learn(FEWEST_BESIDE, 0.001, 0.1)
    assert pace.budget(True) == 2 * FEWEST_BESIDE
    pace.learn(1, 0.001, 0.1)
    assert pace.budget(True) == 2 * FEWEST_BESIDE
    pace.learn(1, 0.6, 0.1)
    assert pace.budget(True) == FEWEST_BESIDE, "one that took too long does"


def test_a_few_long_drafts_do_not_change_what_a_step_takes() -> None:
    pace = Pace(512, 0.5)
    for step in range(400):
        pace.learn(0, 0.0, 0.2 if step % 5 == 0 else 0.01)
    assert pace.decode_seconds == pytest.approx(0.01, rel=0.2)
    for _ in range(100):
        pace.learn(0, 0.0, 0.03)
    assert pace.decode_seconds == pytest.approx(0.03, rel=0.1)
    pace.learn(8, 0.004, 0.0)
    assert pace.decode_seconds == pytest.approx(0.03, rel=0.1), "a step that decoded nothing says nothing"


def test_a_small_limit_bounds_both() -> None:
    pace = Pace(2, 0.7)
    assert pace.budget(False) == pace.budget(True) == 2
    assert settle(pace, 1.0, 0.0) == settle(pace, 1.0, 0.1) == 2
