"""Masks to start from: simple rules, similarities of hidden states, and a dynamic programme over sub-layers.

Sub-layers are counted in the order they run, attention before MLP: place 2 i is the attention of
layer i, place 2 i + 1 its MLP. A hidden state is compared as the output head sees it, after the
final norm: it is that of a pass which skips all later sub-layers.
"""

from collections.abc import Callable, Collection

import torch.nn.functional as F
from torch import Tensor

from offline.calibration.scoring.cost import CostModel
from server.engine import EMPTY_MASK, SkipMask

BINS = 32
"""Amounts of saved time that the dynamic programme tells apart."""
LEAST_SIMILAR = 0.3
"""Partial masks whose state is further than this from the full model's are given up."""

HiddenStates = Callable[[SkipMask], Tensor]
"""The states [tokens, hidden_size] of a pass with a mask."""


def prefix_masks(num_layers: int) -> list[SkipMask]:
    """All masks that skip every sub-layer from some layer on: early exits."""
    return [SkipMask(*[frozenset(range(first, num_layers))] * 2) for first in range(1, num_layers)]


def window_masks(num_layers: int) -> list[SkipMask]:
    """Masks that keep the first layer, the last, and some neighbours between, at about sixteen places."""
    unit = max(num_layers // 16, 1)
    spans = [(first, width * unit) for width in (1, 2, 3) for first in range(1, num_layers - 1, unit)]
    inner = frozenset(range(1, num_layers - 1))
    skipped = [inner - set(range(first, first + width)) for first, width in spans if first + width < num_layers]
    return [SkipMask(layers, layers) for layers in skipped]


def rule_masks(num_layers: int) -> list[SkipMask]:
    """Rules that look at nothing: no skipping, early exits, every other layer, and windows."""
    odd, inner = frozenset(range(1, num_layers, 2)), frozenset(range(1, num_layers - 1))
    none: frozenset[int] = frozenset()
    others = [SkipMask(odd, odd), SkipMask(odd & inner, odd & inner), SkipMask(odd, none), SkipMask(inner, none)]
    return list(dict.fromkeys([EMPTY_MASK, *prefix_masks(num_layers), *others, *window_masks(num_layers)]))


def flipped(mask: SkipMask, places: Collection[int], num_layers: int) -> SkipMask:
    """The mask with these sub-layers changed over; here attention i is i, and MLP i is num_layers + i."""
    attention = mask.attention ^ {place for place in places if place < num_layers}
    return SkipMask(attention, mask.mlp ^ {place - num_layers for place in places if place >= num_layers})


def mask_of(places: Collection[int]) -> SkipMask:
    """The mask that skips these sub-layers, counted as they run."""
    attention = frozenset(place // 2 for place in places if place % 2 == 0)
    return SkipMask(attention, frozenset(place // 2 for place in places if place % 2))


class Depths:
    """Hidden states after the first sub-layers, some of which are skipped."""

    def __init__(self, states: HiddenStates, num_layers: int) -> None:
        self.states = states
        self.num_places = 2 * num_layers
        self.full = [self.after(depth, frozenset()) for depth in range(self.num_places + 1)]

    def after(self, depth: int, skipped: frozenset[int]) -> Tensor:
        """States [tokens, hidden_size] of length one after the first `depth` sub-layers without those `skipped`."""
        mask = mask_of(skipped | set(range(depth, self.num_places)))
        return F.normalize(self.states(mask).float(), dim=-1)


def similarity(one: Tensor, other: Tensor) -> float:
    """Mean cosine of unit rows."""
    return float((one * other).sum(-1).mean())


def cosine_masks(depths: Depths, seconds: tuple[float, float]) -> list[SkipMask]:
    """Masks that skip more and more of the sub-layers that turn the state least for their time, of `place_seconds`.

    After Draft on the Fly (arXiv 2410.01028), which leaves out attentions of high similarity.
    """
    turned = [1 - similarity(depths.full[i], depths.full[i + 1]) for i in range(depths.num_places)]
    order = sorted(range(depths.num_places), key=lambda place: turned[place] / seconds[place % 2])
    return [mask_of(order[:count]) for count in range(1, depths.num_places)]


def knapsack_masks(depths: Depths, seconds: tuple[float, float]) -> list[SkipMask]:
    """For each amount of saved time, the mask whose state stays nearest to the full model's, place by place.

    After CLaSp (arXiv 2505.24196) and KnapSpec (arXiv 2602.20217). One partial mask is kept for each
    amount, so the result is good rather than best.
    """
    unit = sum(seconds) * depths.num_places / 2 / BINS
    kept: dict[int, tuple[float, float, frozenset[int], Tensor]] = {0: (1.0, 0.0, frozenset(), depths.full[0])}
    for place in range(depths.num_places):
        target, found = depths.full[place + 1], dict[int, tuple[float, float, frozenset[int], Tensor]]()
        for _, saved, skipped, state in kept.values():
            longer = saved + seconds[place % 2]
            kept_state = depths.after(place + 1, skipped)
            for total, places, after in ((saved, skipped, kept_state), (longer, skipped | {place}, state)):
                near, amount = similarity(after, target), round(total / unit)
                if near > max(LEAST_SIMILAR, found[amount][0] if amount in found else 0.0):
                    found[amount] = (near, total, places, after)
        kept = found
    return [mask_of(places) for _, _, places, _ in kept.values() if places]


def place_seconds(cost: CostModel, is_low_bit: bool) -> tuple[float, float]:
    """Seconds of an attention and of an MLP; a fitted zero would make skipping it worthless."""
    weights, least = cost.weights(is_low_bit), 1e-3 * cost.plain / cost.num_layers
    return max(weights.attention, least), max(weights.mlp, least)
