"""What is measured by decoding is held against what was predicted."""

import pytest

from offline.calibration.pack import Measured, disbelief
from offline.calibration.search.verdicts import Verdicts
from offline.evaluation.summary import Interval
from offline.prompts import MIXED
from tests.offline.calibration.search.test_verdicts import SCORE, verdict

VERDICTS = Verdicts(
    digest="",
    mixed=verdict(0.1, 0.0, None, None).model_copy(update={"name": MIXED, "score": SCORE}),
    domains=[verdict(0.1, 0.0, None, None)],
    cross=[[1.0]],
)


def measured(**speedups: float) -> Measured:
    return Measured(digest="", speedups={name: Interval(median=at, low=at, high=at) for name, at in speedups.items()})


@pytest.mark.parametrize(
    ("speedups", "warning"),
    [
        ({}, None),
        ({"a": 1.2, MIXED: 1.1}, None),
        ({"a": 1.0, MIXED: 0.95}, None),
        ({"a": 0.9, MIXED: 0.9}, "drafts are predicted at 1.20 of plain decoding, and decoded at 0.90"),
        ({MIXED: 0.5}, "drafts are predicted at 1.20 of plain decoding, and decoded at 0.50"),
    ],
)
def test_costs_are_doubted_where_drafts_are_far_slower_than_predicted(
    speedups: dict[str, float], warning: str | None
) -> None:
    assert disbelief(VERDICTS, measured(**speedups)) == warning
