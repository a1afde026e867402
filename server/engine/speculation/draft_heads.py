"""The heads that drafts score, one for each vocabulary and kind of weights, and which sequence has told them what.

A head is shared by all sequences of its vocabulary: what one of them brings, the others may draft too.
"""

from dataclasses import replace
from weakref import WeakKeyDictionary

from server.engine.model.decoder import Decoder
from server.engine.model.draft_head import DraftHead
from server.engine.sequence import Sequence
from server.engine.speculation.averages import KindAverages
from server.engine.types import DraftModel, DraftVocabulary

MOST_MISSES, FIRST_MISSES = 0.1, 0.03
"""Share of a text's tokens that its vocabulary may lack before the copy scores all tokens, and where nothing is known.

A chain ends at a token that is lacking: one in ten costs a chain of eight a third of its tokens, all tokens cost a
pass of the copy a quarter of its time.
"""
MEMORY, KIND_MEMORY, FIRST_WEIGHT = 64, 512, 16
"""Tokens that this share reaches back to, and as how many of them the share of its kind counts at first."""


class DraftHeads:
    """Makes a head at the first draft that wants it, of the model or of its copy; it goes with its vocabulary."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.heads: WeakKeyDictionary[DraftVocabulary, dict[bool, DraftHead]] = WeakKeyDictionary()
        """By vocabulary, and by whether it is of the low-bit copy."""
        self.told: dict[tuple[int, bool], tuple[DraftVocabulary, int]] = {}
        """By sequence id and kind of weights, the vocabulary it drafts with and how many of its ids were told."""
        self.misses = KindAverages(MEMORY, KIND_MEMORY, FIRST_MISSES, FIRST_WEIGHT)
        """Share of each sequence's tokens that its vocabulary lacked when they came."""

    def grown(self, draft: DraftModel, sequences: list[Sequence]) -> DraftHead | None:
        """The head of the draft's vocabulary, with the tokens of these sequences' prompts and answers.

        None where the draft scores all tokens.
        """
        vocabulary = draft.vocabulary
        if vocabulary is None:
            return None
        heads = self.heads.setdefault(vocabulary, {})
        if draft.is_low_bit not in heads:
            heads[draft.is_low_bit] = DraftHead(self.model.drafting(draft.is_low_bit), vocabulary)
        head = heads[draft.is_low_bit]
        for sequence in sequences:
            key = sequence.id, draft.is_low_bit
            known, length = self.told.get(key, (vocabulary, 0))
            head.add(sequence.ids[length if known is vocabulary else 0 :])
            self.told[key] = vocabulary, len(sequence.ids)
        return head

    def fitting(self, draft: DraftModel, sequence: Sequence) -> DraftModel:
        """The draft, over all tokens if it is the copy's and its vocabulary is not the sequence's."""
        is_foreign = draft.is_low_bit and self.misses.value(sequence) > MOST_MISSES
        return replace(draft, vocabulary=None) if is_foreign and draft.vocabulary is not None else draft

    def learn(self, draft: DraftModel, sequence: Sequence, emitted: list[int]) -> None:
        """Counts what the draft's vocabulary lacked of these tokens; they are not yet among the sequence's."""
        if draft.is_low_bit and (head := self.grown(draft, [sequence])):
            for token in emitted:
                self.misses.add(sequence, token not in head.known)

    def forget(self, sequence: Sequence) -> None:
        """Drops what it keeps of a sequence that has ended; what that brought stays in the heads."""
        self.misses.forget(sequence)
        for is_low_bit in (False, True):
            self.told.pop((sequence.id, is_low_bit), None)
