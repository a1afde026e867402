"""Leaves out the attention and MLP sub-layers that promise most tokens a second, as a knapsack."""

import torch

from server.engine.masks.base import register
from server.engine.masks.costs import PassCosts, best_length
from server.engine.masks.programme import Item, Way, best_ways
from server.engine.masks.renewed import RenewedMask
from server.engine.masks.rereading import Reader
from server.engine.sequence import Sequence
from server.engine.types import FULL_MODEL, DraftModel

NUM_TOKENS = 4
HIGHEST_RATIO = 5
"""Most that an MLP weighs, counted in attentions, or the other way round."""
WAYS = 24
"""Budget at most: so many ways go through each sub-layer at once."""


@register
class KnapSpecMask(RenewedMask):
    """Skips what leaves most tokens a second, by a knapsack over sub-layers; KnapSpec, arXiv 2602.20217.

    Published: up to 1.47 over plain decoding, 1.06 to 1.13 on a model of a billion parameters. A sub-layer weighs what
    it reads: its weights, and attention the keys and values so far; theirs are timed. The states are those of the last
    four tokens, theirs of the tokens of five steps. Nothing is skipped where that promises most, which theirs does not
    consider. It costs a pass over up to 96 rows each 64 tokens, and half as often each time that it finds the same.
    """

    name = "knapspec"
    summary = "without the sub-layers that promise most tokens a second"
    published = "to 1.47"

    def choose(self, sequence: Sequence, ids: list[int]) -> DraftModel:
        costs, reader = PassCosts.of(self.parts.model, sequence.cursor), self.reader(sequence, ids, NUM_TOKENS)
        items = weighed(costs)
        budget = min(sum(item.weight for item in items) // 2, WAYS)
        ways = list(best_ways(reader, items, budget).values())
        return best_draft(reader, ways, costs, sequence.max_draft)


def weighed(costs: PassCosts) -> list[Item]:
    """Every sub-layer as an item; the first and the last layer stay."""
    least = min(costs.attention, costs.mlp)
    weights = [min(round(cost / least), HIGHEST_RATIO) for cost in (costs.attention, costs.mlp)]
    last = costs.num_layers - 1
    numbers = range(2 * costs.num_layers)
    return [Item(range(n, n + 1), weights[n % 2], is_fixed=n // 2 in (0, last)) for n in numbers]


def best_draft(reader: Reader, ways: list[Way], costs: PassCosts, longest: int) -> DraftModel:
    """The draft that promises most by the share of tokens in which each way agrees with the full model."""
    own = reader.likeliest(reader.trace[-1])
    agreeing = (reader.likeliest(torch.stack([way.states for way in ways])) == own).sum(-1).tolist()
    best, highest = FULL_MODEL, 1.0
    for way, count in zip(ways, agreeing, strict=True):
        # Laplace's rule: four of four are no certainty.
        acceptance = (count + 1) / (len(own) + 2)
        rate, length = best_length(acceptance, costs.share(way.mask), longest)
        if rate > highest:
            best, highest = DraftModel(way.mask, max_draft=length), rate
    return best
