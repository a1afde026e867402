"""Starting masks: by rules, by similarity, and by the dynamic programme."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import PassCost
from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.scoring.score import DraftScorer
from offline.calibration.search.initial_masks import (
    Depths,
    cosine_masks,
    flipped,
    knapsack_masks,
    mask_of,
    place_seconds,
    prefix_masks,
    rule_masks,
    similarity,
)
from server.engine import EMPTY_MASK, Decoder, SkipMask
from tests.offline.calibration.examples import COST, vocabularies

NUM_LAYERS = 3
SECONDS = (1.0, 2.0)
TURNS = [0.9, 0.05, 0.5, 0.6, 0.02, 0.8]
"""How far each sub-layer of a made-up model turns its state; states are points on a circle."""


def states(mask: SkipMask) -> Tensor:
    kept = [p for p in range(2 * NUM_LAYERS) if p // 2 not in (mask.mlp if p % 2 else mask.attention)]
    angle = torch.tensor(sum(TURNS[place] for place in kept))
    return torch.stack((angle.cos(), angle.sin()))[None]


def test_rules_hold_all_early_exits_and_no_mask_twice() -> None:
    masks = rule_masks(6)
    assert set(prefix_masks(6)) < set(masks)
    assert len(masks) == len(set(masks))
    keeps_the_edges_and_a_window = SkipMask(frozenset({1, 4}), frozenset({1, 4}))
    assert keeps_the_edges_and_a_window in masks
    assert len(rule_masks(80)) < 150
    assert rule_masks(1)[0] == EMPTY_MASK


@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_flips_undo_themselves(places: set[int], others: set[int]) -> None:
    mask = flipped(EMPTY_MASK, others, 6)
    assert flipped(flipped(mask, places, 6), places, 6) == mask
    assert mask.num_skipped == len(others)


def test_cosine_masks_skip_first_what_turns_the_state_least() -> None:
    masks = cosine_masks(Depths(states, NUM_LAYERS), SECONDS)
    assert [mask.num_skipped for mask in masks] == [1, 2, 3, 4, 5]
    assert masks[0] == mask_of({4}) or masks[0] == mask_of({1})
    assert masks[1] == mask_of({1, 4})
    assert masks[-1] == mask_of({1, 2, 3, 4, 5}), "the first attention turns it most for its time"


def test_the_dynamic_programme_finds_the_nearest_mask_for_each_amount_of_time() -> None:
    full = states(EMPTY_MASK)
    masks = knapsack_masks(Depths(states, NUM_LAYERS), SECONDS)
    assert len(masks) == len(set(masks)) > 5
    best: dict[float, float] = {}
    for size in range(1, 2 * NUM_LAYERS + 1):
        for places in itertools.combinations(range(2 * NUM_LAYERS), size):
            saved, near = sum(2 if p % 2 else 1 for p in places), similarity(states(mask_of(places)), full)
            best[saved] = max(best.get(saved, -1), near)
    for mask in masks:
        saved = len(mask.attention) + 2 * len(mask.mlp)
        assert similarity(states(mask), full) == pytest.approx(best[saved], abs=0.05)


def test_states_of_a_real_model_end_in_the_full_models_own(model: Decoder) -> None:
    scorer = DraftScorer(model, vocabularies(), [Text(prompt_ids=[5, 6, 7], output_ids=list(range(10, 30)))])
    depths = Depths(lambda mask: scorer.hidden_states(DraftChoice(mask=mask)), model.config.num_layers)
    final = torch.nn.functional.normalize(scorer.hidden_states(DraftChoice()).float(), dim=-1)
    torch.testing.assert_close(depths.full[-1], final)
    assert len(depths.full) == 2 * model.config.num_layers + 1
    for mask in [*cosine_masks(depths, SECONDS), *knapsack_masks(depths, SECONDS)]:
        assert not mask.is_empty
        assert max(mask.attention | mask.mlp) < model.config.num_layers


def test_sub_layers_that_seem_to_cost_nothing_cost_a_little() -> None:
    free = COST.model_copy(update={"low_bit": PassCost(base=1.0, head=1.0, attention=0.0, mlp=3.0, patch=0.5)})
    assert place_seconds(free, is_low_bit=False) == (1.0, 1.0)
    attention, mlp = place_seconds(free, is_low_bit=True)
    assert 0 < attention < 0.01 and mlp == 3.0
