"""The heads that drafts score, one for each vocabulary and kind of weights, and which sequence has told them what.

A head is shared by all sequences of its vocabulary: what one of them brings, the others may draft too.
"""

from weakref import WeakKeyDictionary

from server.engine.model.decoder import Decoder
from server.engine.model.draft_head import DraftHead
from server.engine.sequence import Sequence
from server.engine.types import DraftModel, DraftVocabulary


class DraftHeads:
    """Makes a head at the first draft that wants it, of the model or of its copy; it goes with its vocabulary."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self.heads: WeakKeyDictionary[DraftVocabulary, dict[bool, DraftHead]] = WeakKeyDictionary()
        """By vocabulary, and by whether it is of the low-bit copy."""
        self.told: dict[tuple[int, bool], tuple[DraftVocabulary, int]] = {}
        """By sequence id and kind of weights, the vocabulary it drafts with and how many of its ids were told."""

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

    def forget(self, sequence: Sequence) -> None:
        """Drops what it keeps of a sequence that has ended; what that brought stays in the heads."""
        for is_low_bit in (False, True):
            self.told.pop((sequence.id, is_low_bit), None)
