"""The draft policy: it picks what yields most tokens a second, and forgets nothing it still needs."""

import pytest

from server.engine import DraftModel, GenerationRequest, Route, SamplingParams, SkipMask, StepStats, StopConditions
from server.engine.sequence import Sequence
from server.engine.speculation.averages import Average, Steady, Typical
from server.engine.speculation.base import Draft
from server.engine.speculation.drafters import LookupDrafter, SkipDrafter
from server.engine.speculation.drafters.recycling import RecyclingDrafter
from server.engine.speculation.policy import FIRST_BONUS, FIRST_GAIN, FIRST_REST, LONGEST_REST, DraftPolicy, Option
from server.engine.speculation.prices import size_class
from server.engine.speculation.speculator import Speculator
from server.engine.speculation.verification import Verification

MASK = SkipMask(frozenset({1}), frozenset({2}))
SKIPPING = DraftModel(MASK).kind


def sequence(method: str = "cascade", number: int = 0, mask: SkipMask = MASK) -> Sequence:
    request = GenerationRequest([1, 2, 3], SamplingParams(), StopConditions(50))
    made = Sequence.of(number, request, method, 4, 100)
    made.route = Route("stories", DraftModel(mask))
    return made


def measured(skip: float, lookup: float, plain: float) -> DraftPolicy:
    """A policy that knows what steps cost: seconds of each arm."""
    policy = DraftPolicy()
    policy.observe_seconds([], 1, StepStats(verify_seconds=plain))
    stats = StepStats(drafting_seconds={"skip": skip - lookup}, verify_seconds=lookup)
    policy.observe_seconds([Draft([1], "skip", kind=SKIPPING)], 1, stats)
    policy.observe_seconds([Draft([1, 2, 3, 4], "lookup")], 1, StepStats(verify_seconds=lookup))
    return policy


class UnaskedSkipDrafter(SkipDrafter):
    """Could skip layers, and is never asked to."""

    def __init__(self) -> None:
        pass


def pick(policy: DraftPolicy, one: Sequence, num_found: int, num_rows: int) -> str:
    """What the policy picks where a lookup has found so many tokens."""
    speculator = Speculator([LookupDrafter(), UnaskedSkipDrafter()], policy)
    speculator.proposals = {"lookup": {one.id: [0] * num_found}}
    speculator.allowed["cascade"] = ["lookup", "skip"]
    return speculator.pick(one, num_rows)


def learn(policy: DraftPolicy, one: Sequence, arm: str, accepted: int) -> None:
    for _ in range(99):
        policy.observe_gain(arm, one, accepted)


@pytest.mark.parametrize(
    ("method", "num_found", "expected"),
    [
        ("plain", 4, "plain"),
        ("skip", 4, "skip"),
        ("lookup", 4, "lookup"),
        ("lookup", 0, "plain"),
        ("cascade", 0, "skip"),
    ],
)
def test_what_is_unknown_is_tried_plain_decoding_first(method: str, num_found: int, expected: str) -> None:
    policy = DraftPolicy()
    assert pick(policy, sequence(method), num_found, 1) == "plain"
    policy.observe_seconds([], 1, StepStats(verify_seconds=1.0))
    assert pick(policy, sequence(method), num_found, 1) is expected


def test_without_a_mask_nothing_is_skipped() -> None:
    assert pick(DraftPolicy(), sequence("cascade", mask=SkipMask()), 0, 1) == "plain"


def test_the_better_of_lookup_and_skip_is_chosen_by_gain_and_cost() -> None:
    policy, one = measured(skip=1.5, lookup=1.1, plain=1.0), sequence()
    learn(policy, one, "lookup", 1)
    learn(policy, one, "skip", 3)
    assert pick(policy, one, 4, 1) == "skip"
    learn(policy, one, "lookup", 4)
    assert pick(policy, one, 4, 1) == "lookup"


def test_a_losing_draft_gives_way_to_plain_decoding_and_is_tried_again_now_and_then() -> None:
    policy, one = measured(skip=1.5, lookup=1.1, plain=1.0), sequence("skip")
    learn(policy, one, "skip", 0)
    arms = [pick(policy, one, 0, 1) for _ in range(3 * FIRST_REST + 2)]
    assert [i for i, arm in enumerate(arms) if arm == "skip"] == [FIRST_REST, 3 * FIRST_REST + 1]


def test_sequences_of_a_losing_domain_take_their_trials_in_turn() -> None:
    policy = measured(skip=1.5, lookup=1.1, plain=1.0)
    learn(policy, sequence("skip"), "skip", 0)
    arms = [pick(policy, sequence("skip", number), 0, 1) for number in range(3 * FIRST_REST + 2)]
    assert [i for i, arm in enumerate(arms) if arm == "skip"] == [FIRST_REST, 3 * FIRST_REST + 1]
    learn(policy, sequence("skip"), "skip", 3)
    assert pick(policy, sequence("skip", number=99), 0, 1) == "skip"


def test_a_gain_under_two_percent_is_not_worth_it() -> None:
    policy, one = measured(skip=2.0, lookup=1.1, plain=1.0), sequence("skip")
    learn(policy, one, "skip", 1)
    assert pick(policy, one, 0, 1) == "plain"


def test_a_new_sequence_starts_from_its_domain_and_costs_belong_to_a_batch_size() -> None:
    policy, one = measured(skip=1.5, lookup=1.1, plain=1.0), sequence("skip")
    learn(policy, one, "skip", 0)
    for _ in range(64):
        policy.observe_gain("skip", one, 0)
    assert pick(policy, sequence("skip", number=1), 0, 1) == "plain"
    policy.observe_seconds([], 4, StepStats(verify_seconds=1.0))
    assert pick(policy, sequence("skip", number=2), 0, 4) == "skip"


def test_a_finished_sequence_leaves_nothing_behind() -> None:
    policy, one = measured(skip=1.5, lookup=1.1, plain=1.0), sequence("skip")
    for _ in range(9):
        policy.gain("skip", one).add(0)
    pick(policy, one, 0, 1)
    assert policy.rests
    policy.forget(one)
    assert not policy.gains
    assert not policy.rests


def test_averages_and_size_classes() -> None:
    average = Average(4, 1.0)
    average.add(3.0)
    assert average.value == 2.0
    for _ in range(50):
        average.add(6.0)
    assert average.value == pytest.approx(6.0, abs=0.01)
    typical = Typical(3)
    assert typical.value is None
    for seconds in (9.0, 1.0, 50.0, 2.0):
        typical.add(seconds)
    assert typical.value == 2.0
    assert [size_class(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [0, 1, 2, 2, 3, 3, 4]


def test_looked_up_drafts_of_different_length_have_prices_of_their_own() -> None:
    policy, one = measured(skip=1.5, lookup=1.1, plain=1.0), sequence("lookup")
    policy.observe_seconds([Draft(list(range(16)), "lookup")], 1, StepStats(verify_seconds=9.0))
    learn(policy, one, "lookup", 2)
    assert pick(policy, one, 4, 1) == "lookup"
    assert pick(policy, one, 16, 1) == "plain"


def test_what_a_part_of_a_batch_drafts_is_priced_for_each_that_drafts() -> None:
    policy, one = DraftPolicy(), sequence("skip")
    policy.observe_seconds([], 8, StepStats(verify_seconds=1.0))
    half = [Draft([1, 2], "skip", kind=SKIPPING)] * 4
    policy.observe_seconds(half, 8, StepStats(drafting_seconds={"skip": 0.2}, verify_seconds=1.4))
    learn(policy, one, "skip", 1)
    assert pick(policy, one, 0, 8) == "plain"
    learn(policy, one, "skip", 3)
    assert pick(policy, one, 0, 8) == "skip"


def test_drafts_that_are_dear_set_no_price_for_those_of_another_kind() -> None:
    policy, one, dear = DraftPolicy(), sequence("skip"), sequence("skip", 1)
    dear.route = Route("questions", DraftModel(SkipMask(frozenset({1}), frozenset())))
    policy.observe_seconds([], 1, StepStats(verify_seconds=1.0))
    for kind, drafting in ((SKIPPING, 0.1), (dear.route.draft.kind, 5.0)) * 9:
        stats = StepStats(drafting_seconds={"skip": drafting}, verify_seconds=1.1)
        policy.observe_seconds([Draft([1], "skip", kind=kind)], 1, stats)
    for each in (one, dear):
        learn(policy, each, "skip", 1)
    assert (pick(policy, one, 0, 1), pick(policy, dear, 0, 1)) == ("skip", "plain")


def test_few_that_skip_in_a_large_batch_do_not_set_the_price() -> None:
    policy, one = DraftPolicy(), sequence("skip")
    policy.observe_seconds([], 8, StepStats(verify_seconds=1.0))
    policy.observe_seconds([Draft([1], "skip", kind=SKIPPING)] * 8, 8, StepStats(verify_seconds=1.2))
    for _ in range(9):
        policy.observe_seconds([Draft([1], "skip", kind=SKIPPING)], 8, StepStats(verify_seconds=3.0))
    assert pick(policy, one, 0, 8) == "skip"


def test_tries_that_come_to_nothing_count() -> None:
    """A draft of which one token is accepted pays here, but not where three of four tries end without one."""
    for num_empty, expected in ((0, "skip"), (3, "plain")):
        policy, one = DraftPolicy(), sequence("skip")
        policy.observe_seconds([], 1, StepStats(verify_seconds=1.0))
        for _ in range(16):
            policy.observe_seconds(
                [Draft([1], "skip", kind=SKIPPING)], 1, StepStats(drafting_seconds={"skip": 0.2}, verify_seconds=1.3)
            )
            policy.observe_gain("skip", one, 1)
            for _ in range(num_empty):
                stats = StepStats(drafting_seconds={"skip": 0.2}, verify_seconds=1.0)
                policy.observe_seconds([Draft([], "skip", kind=SKIPPING)], 1, stats)
                policy.observe_gain("skip", one, 0)
        assert policy.pick(one, {"skip": Option()}, 1) == expected


def test_a_price_of_a_slow_moment_is_asked_again() -> None:
    """A free draft that promises enough, but was nine times seen on a machine that stood still."""
    policy, one = DraftPolicy(), sequence()
    policy.observe_seconds([], 1, StepStats(verify_seconds=0.01))
    draft, option = [Draft([1, 2, 3, 4], "lookup")], {"lookup": Option(4, promise=3.0)}
    for _ in range(9):
        policy.observe_seconds(draft, 1, StepStats(verify_seconds=1.0))
    picks = [policy.pick(one, option, 1) for _ in range(200)]
    assert 3 <= picks.count("lookup") <= 6
    for _ in range(9):
        policy.observe_seconds(draft, 1, StepStats(verify_seconds=0.012))
    assert policy.pick(one, option, 1) == "lookup"


def test_one_delayed_step_hardly_moves_what_a_try_takes() -> None:
    steady = Steady(32)
    assert steady.value is None
    for _ in range(8):
        steady.add(1.0)
    steady.add(100.0)
    assert steady.value == pytest.approx(1.1, abs=0.05)


def test_what_passes_were_spent_on_in_vain_is_told_to_the_policy() -> None:
    policy, one = DraftPolicy(), sequence("skip")
    speculator = Speculator([UnaskedSkipDrafter()], policy)
    drafts = {one.id: Draft([], "skip", kind=SKIPPING)}
    speculator.learn([one], drafts, [Verification([5], 0, 0)], StepStats(verify_seconds=1.0))
    assert policy.gain("skip", one).count == 2


def test_a_tree_is_checked_where_its_rows_cost_less_than_they_bring() -> None:
    """Chains of four cost 2 ms, trees of sixteen 3 or 12 ms more; a branch brings half a token."""
    tree = Draft([5, 6, 7, 8], "recycling", tuple([9 + i, 5, 6] for i in range(4)))
    assert tree.num_rows == 16
    for seconds, expected in ((0.003, True), (0.012, False)):
        policy = DraftPolicy()
        policy.observe_seconds([], 1, StepStats(verify_seconds=0.01))
        assert policy.prefers_tree(tree, 1), "nothing is known yet"
        for _ in range(9):
            for draft, extra in ((Draft(tree.ids, "recycling"), 0.002), (tree, seconds)):
                policy.observe_seconds([draft], 1, StepStats(verify_seconds=0.01 + extra))
            policy.observe_bonus("recycling", 0.5)
        found = [policy.prefers_tree(tree, 1) for _ in range(200)]
        assert found[0] is expected
        assert all(found) if expected else 3 <= sum(found) <= 8, "what loses is tried now and then"


def test_the_policy_hears_of_the_bonus_of_branches_and_the_gain_of_the_chain() -> None:
    policy, one = DraftPolicy(), sequence("recycling")
    speculator = Speculator([RecyclingDrafter(20)], policy, max_tree=8)
    speculator.draft([one], StepStats())
    speculator.others["recycling"] = {one.id: ([7, 8],)}
    speculator.judge("recycling", one, [5, 6], [7, 8, 9])
    assert policy.gain("recycling", one).value < FIRST_GAIN
    assert policy.bonuses["recycling"].value > FIRST_BONUS


def test_promises_that_do_not_come_true_are_believed_less_and_only_in_their_kind_of_sequence() -> None:
    policy, one = DraftPolicy(), sequence("adaptive")
    policy.observe_seconds([], 1, StepStats(verify_seconds=1.0))
    for name in ("suffix", "recycling"):
        policy.observe_seconds([Draft([1, 2], name)], 1, StepStats(verify_seconds=1.2))
    options = {"suffix": Option(2, promise=1.0), "recycling": Option(2, promise=1.4)}
    picks = []
    for _ in range(40):
        picks.append(policy.pick(one, options, 1))
        policy.observe_check(picks[-1], one, {"suffix": 1, "recycling": 0, "plain": 0}[picks[-1]])
    assert picks[0] == "recycling"
    assert set(picks[8:]) == {"suffix"}
    elsewhere = sequence("adaptive", number=1)
    elsewhere.route = Route("sql", DraftModel(MASK))
    assert policy.pick(elsewhere, options, 1) == "recycling"


def test_what_was_not_checked_says_nothing_of_promises() -> None:
    policy, one = DraftPolicy(), sequence("adaptive")
    policy.observe_seconds([], 1, StepStats(verify_seconds=1.0))
    policy.observe_seconds([Draft([1, 2], "suffix")], 1, StepStats(verify_seconds=1.2))
    policy.observe_check("suffix", one, 0)
    assert policy.expected("suffix", one, 2.0) == 2.0
    policy.pick(one, {"suffix": Option(2, promise=2.0)}, 1)
    policy.observe_check("suffix", one, 0)
    assert policy.expected("suffix", one, 2.0) < 2.0
    policy.pick(one, {"suffix": Option(2, promise=2.0)}, 1)
    policy.forget(one)
    assert not policy.promised


def test_a_drafter_that_is_hardly_ever_picked_is_asked_now_and_then_and_again_where_it_is_picked() -> None:
    policy, one = DraftPolicy(), sequence("adaptive")
    asked = [policy.asks("recycling", one) for _ in range(20)]
    assert all(asked)
    for _ in range(200):
        policy.observe_pick("recycling", one, is_picked=False)
    asked = [policy.asks("recycling", one) for _ in range(400)]
    assert 400 // LONGEST_REST <= sum(asked) <= 12
    elsewhere = sequence("adaptive", number=1)
    elsewhere.route = Route("sql", DraftModel(MASK))
    assert policy.asks("recycling", elsewhere)
    for _ in range(20):
        policy.observe_pick("recycling", one, is_picked=True)
    assert all(policy.asks("recycling", one) for _ in range(20))


def test_the_first_drafter_of_a_method_proposes_in_each_step() -> None:
    speculator = Speculator([LookupDrafter(), RecyclingDrafter(50)], DraftPolicy())
    assert speculator.policy is not None
    speculator.allowed["adaptive"] = ["lookup", "recycling"]
    one, alone = sequence("adaptive"), sequence("recycling", number=1)
    for name in ("lookup", "recycling"):
        for _ in range(200):
            speculator.policy.observe_pick(name, one, is_picked=False)
    assert all(speculator.asks("lookup", one) for _ in range(9))
    assert [speculator.asks("recycling", one) for _ in range(9)].count(True) == 1
    assert all(speculator.asks("recycling", alone) for _ in range(9))
    assert not speculator.asks("lookup", alone)
    without = Speculator([LookupDrafter(), RecyclingDrafter(50)])
    without.allowed["adaptive"] = ["lookup", "recycling"]
    assert all(without.asks("recycling", one) for _ in range(9))
