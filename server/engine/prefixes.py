"""Prefix reuse: a prompt that begins as a text that was read before is read from where the two part.

The eighth turn of a chat has seven turns and their answers before it. All of that was read or written in the turn
before, so what is left to read is the last question.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items

from server.engine.kvcache.tables import BlockTables
from server.engine.kvcache.tree import UNKNOWN, Beginning, PrefixTree, num_equal
from server.engine.sequence import Sequence

SHORTEST = 16
"""Tokens from which on a common beginning is worth a copy."""
STRIDE = 64
"""Tokens that are compared at a time."""


class Prefixes:
    """What texts of the past and running ones have in common with a prompt.

    Only sequences of one owner share: how soon a first token comes would tell others what was asked. A token has the
    same keys, values and state in any batch and by any method, so an answer is the same with and without this.
    """

    def __init__(self, tables: BlockTables, tree: PrefixTree, is_on: bool) -> None:
        self.tables = tables
        self.tree = tree
        self.is_on = is_on

    def begin(self, sequence: Sequence, running: Items[Sequence]) -> None:
        """Moves the cursor of a sequence that has read nothing over what is known of its text."""
        sequence.cursor = self.tables.begin(sequence.slot, self.longest(sequence, running))
        if not sequence.output_ids:
            sequence.num_cached = sequence.cursor

    def num_known(self, sequence: Sequence, running: Items[Sequence]) -> int:
        """Tokens of a text that need not be read."""
        return self.longest(sequence, running).length

    def num_shared(self, sequence: Sequence, running: Items[Sequence]) -> int:
        """Blocks in use that it would share."""
        return sum(map(self.tables.pool.is_used, self.longest(sequence, running).blocks))

    def is_being_read(self, sequence: Sequence, chosen: Collection[Sequence], running: Items[Sequence]) -> bool:
        """Whether one of those `chosen` to read will hold more of this text than is known of it now."""
        to_come = self.common_lengths(sequence, {other: other.request.prompt_ids for other in chosen})
        return max(to_come.values(), default=0) > self.num_known(sequence, running)

    def longest(self, sequence: Sequence, running: Items[Sequence]) -> Beginning:
        """The longest beginning of a text, without its last token: that is always read, for what follows it."""
        if not self.may_share(sequence):
            return UNKNOWN
        past = self.tree.find(sequence.request.owner, sequence.ids[: sequence.reading_end - 1])
        lengths = self.common_lengths(sequence, {other: other.ids[: other.cursor] for other in running})
        best = max(lengths, key=lambda other: lengths[other], default=sequence)
        if lengths.get(best, 0) > past.length:
            return self.tables.held(best.slot, lengths[best])
        return past if past.length >= SHORTEST else UNKNOWN

    def common_lengths(self, sequence: Sequence, texts: Mapping[Sequence, list[int]]) -> dict[Sequence, int]:
        """By running sequence, how much of the text it has, where that is worth a copy."""
        if not self.may_share(sequence):
            return {}
        own, owner = sequence.ids[: sequence.reading_end - 1], sequence.request.owner
        lengths = {other: length_in(own, ids) for other, ids in texts.items() if other.request.owner == owner}
        return {other: length for other, length in lengths.items() if length >= SHORTEST}

    def may_share(self, sequence: Sequence) -> bool:
        """A prompt whose tokens are scored is read whole."""
        return self.is_on and not sequence.request.scores_prompt

    def keep(self, sequence: Sequence) -> None:
        """A sequence gives its slot up: the blocks of what was written stay known until they are needed."""
        way: list[int] = []
        if self.is_on and sequence.cursor > 0:
            blocks = self.tables.blocks[sequence.slot]
            way = self.tree.insert(sequence.request.owner, sequence.ids[: sequence.cursor], blocks)
        self.tables.release(sequence.slot)
        self.tables.pool.renew(reversed(way))


def length_in(ids: list[int], other: list[int]) -> int:
    """The length of their common beginning, many tokens at a time."""
    start = 0
    while start + STRIDE <= len(ids) and ids[start : start + STRIDE] == other[start : start + STRIDE]:
        start += STRIDE
    return start + num_equal(ids[start:], other[start:])
