"""The budget of a step: it follows the seconds that were measured, between its bounds."""

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
    assert settle(pace, 0.001, 0.010) == 30
    assert settle(pace, 0.001, 0.020, num_steps=80) == 60
    assert settle(pace, 0.001, 0.001, num_steps=80) == FEWEST_BESIDE
    assert pace.budget(False) == 512, "a budget of its own"


def test_it_at_most_doubles_and_a_short_read_says_nothing_of_a_long_one() -> None:
    pace = Pace(512, 0.75)
    pace.learn(8, 0.001, 0.1)
    assert pace.budget(True) == 16
    pace.learn(2, 0.001, 0.1)
    assert pace.budget(True) == 16
    pace.learn(2, 0.6, 0.1)
    assert pace.budget(True) == FEWEST_BESIDE, "one that took too long does"


def test_steps_without_prompts_teach_how_long_decoding_takes() -> None:
    pace = Pace(512, 0.5)
    pace.learn(0, 0.0, 0.04)
    assert pace.decode_seconds == 0.04
    pace.learn(0, 0.0, 0.12)
    assert abs(pace.decode_seconds - 0.05) < 1e-9
    pace.learn(8, 0.004, 0.0)
    assert abs(pace.decode_seconds - 0.05) < 1e-9


def test_a_small_limit_bounds_both() -> None:
    pace = Pace(5, 0.7)
    assert pace.budget(False) == pace.budget(True) == 5
    assert settle(pace, 1.0, 0.0) == settle(pace, 1.0, 0.1) == 5
