"""Copies drafts from the text so far: what followed the same n-gram earlier in prompt or answer."""

from typing import Self

from server.engine.sequence import Sequence
from server.engine.speculation.base import Drafter, DraftingParts, Feedback, Proposals, register
from server.engine.types import LONGEST_GROWTH


class NgramIndex:
    """Where each n-gram of a sequence last ended, extended as the sequence grows."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.ends: dict[tuple[int, ...], int] = {}
        self.length = 0

    def extend(self, ids: list[int]) -> None:
        """Indexes n-grams that end before the last id; the last ones are what is looked up."""
        for end in range(max(self.length, 1), len(ids)):
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(ids[end - size : end])] = end
        self.length = max(len(ids), 1)

    def continuation(self, ids: list[int], limit: int) -> list[int]:
        """At most `limit` ids that followed the latest earlier occurrence of the longest matching suffix.

        After 7 8 9 1 7 8, with n-grams of two, 9 1 is the continuation: 7 8 was followed by it before.
        """
        for size in self.sizes:
            end = self.ends.get(tuple(ids[-size:])) if size <= len(ids) else None
            if end is not None:
                return ids[end : end + limit]
        return []


@register
class LookupDrafter(Drafter):
    """Continues as the grammar must, or as the same n-gram continued earlier; prompt lookup, which costs no pass.

    A draft of which all was accepted is followed by one twice as long, up to four times the usual length; any
    other by one of the usual length again: a copied passage goes on, a chance match does not. What is
    published for it is Spec-Bench's (github.com/hemingkx/Spec-Bench), Vicuna models on an A100.
    """

    name = "lookup"
    summary = "copies from prompt and answer; costs no pass"
    published = "1.40-1.66"
    is_free = True
    memory = 6
    """Short, since a copied passage begins and ends at once."""

    def __init__(self, sizes: tuple[int, ...] = (4, 3)) -> None:
        self.sizes = sizes
        self.indexes: dict[int, NgramIndex] = {}
        self.growths: dict[int, int] = {}

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        return cls()

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        proposals: Proposals = {}
        for sequence in sequences:
            index = self.indexes.setdefault(sequence.id, NgramIndex(self.sizes))
            index.extend(sequence.ids)
            limit = sequence.grown_draft_limit(self.growths.get(sequence.id, 1))
            if found := sequence.forced(limit) or index.continuation(sequence.ids, limit):
                proposals[sequence.id] = found
        return proposals

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        if not feedback.is_open:
            grown = min(2 * self.growths.get(sequence.id, 1), LONGEST_GROWTH)
            self.growths[sequence.id] = grown if feedback.is_whole else 1

    def forget(self, sequence: Sequence) -> None:
        self.indexes.pop(sequence.id, None)
        self.growths.pop(sequence.id, None)
