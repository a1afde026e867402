"""The budget of a step: it follows the seconds that were measured, between its bounds."""

import pytest

from server.engine.pace import ALONE_SECONDS, FEWEST_ALONE, FEWEST_BESIDE, LONGEST_UNSEEN, Pace


def settle(
    pace: Pace, seconds_per_token: float, decode_seconds: float, crowd: float = 1.0, num_steps: int = 120
) -> int:
    """The budget after some passes on a machine that takes so long; a decode of 0 seconds is none."""
    is_decoding = decode_seconds > 0
    for _ in range(num_steps):
        budget = pace.budget(is_decoding)
        pace.learn(budget, budget * seconds_per_token + decode_seconds, is_decoding, crowd)
    if not pace.budget(is_decoding):
        pace.learn(0, decode_seconds, is_decoding)
    return pace.budget(is_decoding)


def test_alone_a_step_reads_for_a_tenth_of_a_second() -> None:
    pace = Pace(512, 0.7)
    assert pace.budget(False) == 512
    assert settle(pace, 0.0005, 0.0) == round(ALONE_SECONDS / 0.0005) == 200
    assert settle(pace, 0.00001, 0.0) == 512
    assert settle(pace, 1.0, 0.0) == FEWEST_ALONE


def test_beside_others_it_reads_for_its_share_of_the_pass() -> None:
    pace = Pace(512, 0.75)
    assert settle(pace, 0.001, 0.010) == pytest.approx(30, rel=0.1)
    assert settle(pace, 0.001, 0.020) == pytest.approx(60, rel=0.1)
    assert settle(pace, 0.001, 0.0005) == FEWEST_BESIDE
    assert pace.budget(False) == 512, "a budget of its own"


def test_what_decoding_alone_takes_is_seen_first_and_again_and_again() -> None:
    pace = Pace(512, 0.5)
    budgets = []
    for _ in range(3 * (LONGEST_UNSEEN + 1)):
        budgets.append(pace.budget(True))
        pace.learn(budgets[-1], 0.01, True)
    assert [i for i, budget in enumerate(budgets) if not budget] == [i * (LONGEST_UNSEEN + 1) for i in range(3)]


def test_a_crowd_of_prompts_gets_more_but_no_more_than_alone() -> None:
    budgets = [settle(Pace(512, 0.5), 0.001, 0.02, crowd) for crowd in (0.1, 1.0, 4.0, 100.0)]
    assert budgets == pytest.approx([20, 20, 80, 100], rel=0.1)
    assert settle(Pace(512, 0.5), 0.001, 0.3, 100.0) == pytest.approx(300, rel=0.1), "a share of more is more"


def test_it_at_most_doubles_and_a_short_read_says_nothing_of_a_long_one() -> None:
    pace = Pace(512, 0.75)
    assert pace.learn(0, 0.1, True) == 0
    assert pace.learn(FEWEST_BESIDE, 0.101, True) == pytest.approx(0.001)
    assert pace.budget(True) == 2 * FEWEST_BESIDE
    pace.learn(1, 0.101, True)
    assert pace.budget(True) == 2 * FEWEST_BESIDE
    pace.learn(1, 0.7, True)
    assert pace.budget(True) == FEWEST_BESIDE, "one that took too long does"
    assert pace.learn(FEWEST_BESIDE, 0.05, True) == 0, "a pass that was faster than others"
    assert pace.budget(True) == 2 * FEWEST_BESIDE


def test_a_few_long_drafts_do_not_change_what_a_pass_takes() -> None:
    pace = Pace(512, 0.5)
    for step in range(40):
        pace.learn(0, 0.2 if step % 5 == 0 else 0.01, True)
    assert pace.learn(8, 0.014, True) == pytest.approx(0.004)
    for _ in range(10):
        pace.learn(0, 0.03, True)
    assert pace.learn(8, 0.034, True) == pytest.approx(0.004)
    assert pace.learn(8, 0.004, False) == 0.004, "a pass that decoded nothing is all reading"


def test_a_small_limit_bounds_both() -> None:
    pace = Pace(2, 0.7)
    pace.learn(0, 0.1, True)
    assert pace.budget(False) == pace.budget(True) == 2
    assert settle(pace, 1.0, 0.0) == settle(pace, 1.0, 0.1) == 2
