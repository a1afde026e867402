"""A tree of drafts, checked as its branches: each in a slot that shares the text so far with the sequence's own.

So every token stands where plain decoding would put it, and sums run in the same order: a tree is exact, bit for bit,
without a kernel of its own. What branches have in common is checked once for each of them.
"""

from server.engine.kvcache.batch import Row
from server.engine.kvcache.tables import BlockTables
from server.engine.sequence import Sequence

OWN_BLOCKS = 2
"""Blocks that a branch has for itself at most: one of which it shares a part, and one for what follows."""


class Branches:
    """Slots that no sequence owns; they have blocks while a tree is checked."""

    def __init__(self, tables: BlockTables, slots: list[int]) -> None:
        self.tables = tables
        self.slots = slots

    def rows(self, sequence: Sequence, branches: tuple[list[int], ...]) -> list[Row]:
        """The rows of a check for the first of these continuations: as many as there are slots, and blocks for."""
        rows = []
        for slot, ids in zip(self.slots, branches, strict=False):
            begun = self.tables.begin(slot, self.tables.held(sequence.slot, sequence.cursor))
            if begun < sequence.cursor or not self.tables.grow(slot, sequence.cursor + 1 + len(ids)):
                self.tables.release(slot)
                break
            rows.append((slot, sequence.cursor, [sequence.ids[-1], *ids]))
        return rows

    def take_over(self, sequence: Sequence, slot: int) -> None:
        """Gives the sequence's own slot what was written for a branch from the cursor on."""
        self.tables.exchange(sequence.slot, slot, sequence.cursor)

    def release(self) -> None:
        for slot in self.slots:
            self.tables.release(slot)
