"""Leaves out the layers without which the last token's states change least."""

from server.engine.masks.base import register
from server.engine.masks.programme import Item, best_ways
from server.engine.masks.renewed import RenewedMask
from server.engine.sequence import Sequence
from server.engine.types import DraftModel

SHARE = 4
"""One in so many layers is left out: 8 of 32, as published for models of 8 billion parameters."""


@register
class ClaspMask(RenewedMask):
    """Skips a quarter of the layers, by a dynamic programme on the last token; CLaSp, arXiv 2505.24196.

    Published: 1.3 to 1.7 over plain decoding on models of the Llama 3 series. Here first and last layer stay, and the
    way through the layers reads the full model's keys and values (`best_ways`). It costs a pass over a quarter as many
    rows as there are layers each 64 tokens.
    """

    name = "clasp"
    summary = "without the layers that the last token misses least"
    published = "1.3-1.7"

    def choose(self, sequence: Sequence, ids: list[int]) -> DraftModel:
        last = self.parts.model.config.num_layers - 1
        items = [Item(range(2 * i, 2 * i + 2), 1, is_fixed=i in (0, last)) for i in range(last + 1)]
        ways = best_ways(self.reader(sequence, ids, 1), items, (last + 1) // SHARE)
        return DraftModel(ways[max(ways)].mask)
