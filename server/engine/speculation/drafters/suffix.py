"""Continues as answers of the same domain did, or as the text itself does."""

from typing import Self

from server.engine.history.history import History, Text
from server.engine.sequence import Sequence
from server.engine.speculation.base import Drafter, DraftingParts, Proposals, register
from server.engine.types import LONGEST_GROWTH, FinishReason


@register
class SuffixDrafter(Drafter):
    """Follows the counts of what came next before; SuffixDecoding, arXiv 2411.04975, with a table for its trees.

    Counted are this prompt and answer, and the domain's answers of the past: other prompts would do harm (LOG.md,
    29 November). It costs no pass. A draft ends before a token that is less likely to be right than its row in the
    check costs, so its length follows from the counts and from the machine.
    """

    name = "suffix"
    summary = "continues as answers of the same domain did, or as the text itself; costs no pass"
    is_free = True

    def __init__(self, history: History) -> None:
        self.history = history
        self.texts: dict[int, Text] = {}
        self.promises: dict[int, float] = {}

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        assert parts.history is not None
        return cls(parts.history)

    @classmethod
    def fits(cls, parts: DraftingParts) -> bool:
        return parts.history is not None

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        proposals: Proposals = {}
        for sequence in sequences:
            if sequence.id not in self.texts:
                domain, owner = sequence.route.domain, sequence.request.owner
                self.texts[sequence.id] = self.history.text(domain, owner, sequence.max_ids)
            text, limit = self.texts[sequence.id], sequence.grown_draft_limit(LONGEST_GROWTH)
            text.extend(sequence.ids)
            forced = sequence.grammar.forced(sequence.ids, limit) if sequence.grammar else []
            found, self.promises[sequence.id] = text.continuation(limit, sequence.ids, row_price)
            if forced:
                found, self.promises[sequence.id] = forced, len(forced)
            if found:
                proposals[sequence.id] = found
        return proposals

    def promise(self, sequence: Sequence) -> float:
        return self.promises[sequence.id]

    def forget(self, sequence: Sequence) -> None:
        if sequence.id in self.texts and sequence.finish_reason is not FinishReason.ERROR:
            self.history.add(sequence.route.domain, sequence.request.owner, sequence.ids, sequence.prompt_length)
        self.texts.pop(sequence.id, None)
        self.promises.pop(sequence.id, None)
