"""The heads that drafts score, one for each vocabulary, and which sequence has told them what.

A head is shared by all sequences of its vocabulary: what one of them brings, the others may draft too.
"""

from weakref import WeakKeyDictionary

from server.engine.model.decoder import Decoder
from server.engine.model.draft_head import DraftHead
from server.engine.sequence import Sequence
from server.engine.types import DraftVocabulary


class DraftHeads:
    """Makes a head at the first draft that wants it; it goes with its vocabulary."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.heads: WeakKeyDictionary[DraftVocabulary, DraftHead] = WeakKeyDictionary()
        self.told: dict[int, tuple[DraftVocabulary, int]] = {}
        """By sequence id, the vocabulary it drafts with and how many of its ids that has heard of."""

    def grown(self, vocabulary: DraftVocabulary, sequences: list[Sequence]) -> DraftHead:
        """The vocabulary's head, with the tokens of these sequences' prompts and answers."""
        head = self.heads.get(vocabulary)
        if head is None:
            head = self.heads[vocabulary] = DraftHead(self.decoder, vocabulary)
        for sequence in sequences:
            known, length = self.told.get(sequence.id, (vocabulary, 0))
            head.add(sequence.ids[length if known is vocabulary else 0 :])
            self.told[sequence.id] = vocabulary, len(sequence.ids)
        return head

    def forget(self, sequence: Sequence) -> None:
        """Drops what it keeps of a sequence that has ended; what that brought stays in the heads."""
        self.told.pop(sequence.id, None)
