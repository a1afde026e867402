"""The replay of drafting on recorded agreements."""

from hypothesis import given
from hypothesis import strategies as st

from offline.calibration.scoring.cost import LONGEST_DRAFT, CostModel, PassCost
from offline.calibration.scoring.drafts import DraftChoice, DraftRule
from offline.calibration.scoring.replay import FIRST_RULE, RULES, Trace, best_rule, replay
from server.engine import SkipMask

HALF = DraftChoice(mask=SkipMask(frozenset({2, 3}), frozenset({2, 3})))
COST = CostModel(
    num_layers=4,
    vocabulary_size=262,
    own=PassCost(base=0.5, head=0.5, attention=1.0, mlp=2.0, patch=0.5),
    full=[13.0] * 8 + [15.0] * (LONGEST_DRAFT - 7),
)

places = st.lists(st.tuples(st.booleans(), st.floats(0, 1)), max_size=60)
rules = st.sampled_from(RULES)


def trace(found: list[tuple[bool, float]]) -> Trace:
    return Trace([agrees for agrees, _ in found], [confidence for _, confidence in found])


def test_full_agreement_emits_a_whole_draft_and_one_token_a_step() -> None:
    result = replay([Trace([True] * 27, [1.0] * 27)], DraftRule(max_draft=8, confidence=0.5))
    assert result.lengths == {8: 3}
    assert result.num_emitted == 27
    assert result.acceptance == 1.0


def test_no_agreement_emits_one_token_a_step() -> None:
    result = replay([Trace([False] * 5, [1.0] * 5)], DraftRule(max_draft=2, confidence=0.5))
    assert result.num_emitted == 5
    assert result.acceptance == 0.0
    assert result.lengths == {2: 3, 1: 1, 0: 1}


def test_a_draft_ends_after_its_first_unsure_token() -> None:
    result = replay([Trace([True] * 6, [0.9, 0.1, 0.9, 0.9, 0.9, 0.9])], DraftRule(max_draft=4, confidence=0.5))
    assert result.lengths == {2: 2}


def test_a_draft_ends_before_a_token_under_the_floor_and_pays_for_its_pass() -> None:
    rule = DraftRule(max_draft=4, confidence=0.0, floor=0.5)
    result = replay([Trace([True] * 6, [0.9, 0.1, 0.9, 0.9, 0.1, 0.9])], rule)
    assert result.lengths == {1: 1, 2: 1, 0: 1}
    assert (result.num_drafted, result.num_passes) == (3, 5)
    assert result.seconds(HALF, COST) == COST.verify(2) + COST.verify(3) + COST.verify(1) + 5 * COST.draft(HALF)


@given(st.lists(places, max_size=4), rules)
def test_every_place_is_emitted_once(groups: list[list[tuple[bool, float]]], rule: DraftRule) -> None:
    result = replay(map(trace, groups), rule)
    assert result.num_emitted == sum(map(len, groups))
    assert 0 <= result.acceptance <= 1
    assert 0 <= result.num_accepted <= result.num_drafted
    assert all(length <= rule.max_draft for length in result.lengths)
    assert result.speedup(HALF, COST) <= (rule.max_draft + 1) * COST.plain / COST.verify(1)


@given(st.integers(1, 60), rules)
def test_nothing_beats_full_agreement(length: int, rule: DraftRule) -> None:
    agreeing = replay([Trace([True] * length, [1.0] * length)], rule)
    doubting = replay([Trace([i % 3 > 0 for i in range(length)], [1.0] * length)], rule)
    assert doubting.lengths.total() >= agreeing.lengths.total()
    assert doubting.num_accepted <= agreeing.num_accepted


def test_nothing_to_replay_is_no_speedup() -> None:
    assert replay([], RULES[0]).speedup(HALF, COST) == 1.0


def test_the_best_rule_follows_the_text() -> None:
    sure = [Trace([True] * 90, [1.0] * 90)]
    wrong = [Trace([False, True] * 45, [0.1, 0.9] * 45)]
    assert best_rule(sure, HALF, COST).max_draft > 4
    best = best_rule(wrong, HALF, COST)
    assert max(best.confidence, best.floor) > 0.1
    assert best_rule([], HALF, COST) == FIRST_RULE
