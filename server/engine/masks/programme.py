"""Dynamic programming over sub-layers: which to leave out so that the states at the end change least."""

from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.masks.rereading import Reader
from server.engine.types import SkipMask

LEAST_COSINE = 0.5
"""A way whose states differ more than this from the full model's is given up."""


@dataclass(frozen=True)
class Item:
    """Sub-layers that are left out together or not at all, and what that takes of the budget."""

    sublayers: range
    weight: int
    is_fixed: bool = False
    """Whether they always stay."""


@dataclass(frozen=True)
class Way:
    """The states [tokens, hidden_size] behind some of the items, and the sub-layers left out so far."""

    states: Tensor
    skipped: frozenset[int] = frozenset()

    @property
    def mask(self) -> SkipMask:
        """Sub-layers are attention and MLP of each layer in turn."""
        attention = frozenset(number // 2 for number in self.skipped if number % 2 == 0)
        return SkipMask(attention, frozenset(number // 2 for number in self.skipped if number % 2))


def best_ways(reader: Reader, items: list[Item], budget: int) -> dict[int, Way]:
    """For each weight left out, up to `budget`, the way whose states stay closest to the full model's.

    CLaSp, arXiv 2505.24196, section 3: of the two ways to reach a weight behind an item, the closer one is kept, so the
    result is near the best and not always it. All ways take an item in one pass. Theirs write keys and values of their
    own; here each reads the full model's, also at its own place, which leaves the cache as it is.
    """
    ways = {0: Way(reader.trace[0].float())}
    for item in items:
        stacked = torch.stack([way.states for way in ways.values()], 1)
        kept = reader.through(stacked, item.sublayers).float()
        target = reader.trace[item.sublayers.stop].float()
        reached: dict[int, tuple[float, Way]] = {}
        near_kept, near_left = closeness(kept, target), closeness(stacked, target)
        for i, (weight, way) in enumerate(ways.items()):
            choices = [(near_kept[i], weight, Way(kept[:, i], way.skipped))]
            if not item.is_fixed and weight + item.weight <= budget:
                skipped = way.skipped.union(item.sublayers)
                choices.append((near_left[i], weight + item.weight, Way(way.states, skipped)))
            for near, total, choice in choices:
                if near > reached.get(total, (LEAST_COSINE, way))[0]:
                    reached[total] = near, choice
        ways = {total: way for total, (_, way) in sorted(reached.items())}
    return ways


def closeness(states: Tensor, target: Tensor) -> list[float]:
    """Of each variant's states [tokens, variants, hidden_size], the mean cosine to the target [tokens, hidden_size]."""
    found: list[float] = torch.cosine_similarity(states, target[:, None], dim=-1).mean(0).tolist()
    return found
