"""A tree of drafts, checked as its branches: each in a slot that holds the text so far, beside the sequence's own.

So every token stands where plain decoding would put it, and sums run in the same order: a tree is exact, bit for bit,
without a kernel of its own. What branches have in common is checked once for each of them.
"""

from server.engine.kvcache.slots import KVCache, Row
from server.engine.sequence import Sequence


class Branches:
    """Slots that no sequence owns. What one holds of a sequence is kept, so that each step copies what is new only."""

    def __init__(self, cache: KVCache, slots: list[int]) -> None:
        self.cache = cache
        self.slots = slots
        self.held: dict[int, tuple[int, int]] = {}
        """By slot, a sequence's id, and how many of its positions stand there as in its own slot."""

    def rows(self, sequence: Sequence, branches: tuple[list[int], ...]) -> list[Row]:
        """The rows of a check for these continuations of a sequence; of as many as there are slots."""
        rows = []
        for slot, ids in zip(self.slots, branches, strict=False):
            number, known = self.held.get(slot, (sequence.id, 0))
            first = known if number == sequence.id else 0
            if first < sequence.cursor:
                self.cache.copy(sequence.slot, slot, sequence.cursor, first)
            self.held[slot] = sequence.id, sequence.cursor
            rows.append((slot, sequence.cursor, [sequence.ids[-1], *ids]))
        return rows

    def take_over(self, sequence: Sequence, slot: int, length: int) -> None:
        """Gives the sequence's own slot the `length` positions from the cursor on that were written for a branch."""
        self.cache.copy(slot, sequence.slot, sequence.cursor + length, sequence.cursor)
