"""A second choice beside a greedy draft: in place of its last token, of which it was least sure.

A chain ends after a token that the draft would bet against. What comes second there is known for nothing, and is right
about as often as not where the first is wrong. One sibling of one node, the last: a tree of drafts as OPT-Tree's
(arXiv 2406.17276), of which only this part is worth its rows, since each branch has all of its rows for itself.
"""

from typing import NamedTuple

from torch import Tensor

from server.engine.model.native_head import NativeHead
from server.engine.sequence import Sequence
from server.engine.speculation.averages import Average
from server.engine.speculation.base import Feedback, Paths
from server.engine.types import DraftModel

MEMORY, FIRST_ACCEPTANCE = 64, 0.7


class Last(NamedTuple):
    """A chain, the logits that its last token was chosen from, and the tokens that they are of (None: all)."""

    chain: list[int]
    logits: Tensor
    head: NativeHead | None


class Siblings:
    """What may stand in place of the last token of a lone sequence's chain."""

    def __init__(self) -> None:
        self.latest: dict[int, Last] = {}
        self.acceptance = Average(MEMORY, FIRST_ACCEPTANCE)

    def note(
        self, sequence: Sequence, draft: DraftModel, chain: list[int], logits: Tensor, head: NativeHead | None
    ) -> None:
        """Remembers how a chain ended; the logits are read before the next draft writes over them.

        Sampled tokens have other seconds than the likeliest, and under a floor a chain ends before its last choice.
        """
        self.latest.clear()
        if chain and sequence.request.sampling.is_greedy and draft.floor == 0:
            self.latest[sequence.id] = Last(chain, logits, head)

    def branches(self, sequence: Sequence, row_price: float) -> Paths:
        """The chain with its last token's sibling, if that is worth the rows."""
        if not (last := self.latest.pop(sequence.id, None)):
            return ()
        tops, places = last.logits.topk(2)
        chance = float((tops[1] - last.logits.logsumexp(-1)).exp())
        if self.acceptance.value ** (len(last.chain) - 1) * chance < row_price:
            return ()
        second = int(places[1])
        return ([*last.chain[:-1], last.head.ids[second] if last.head else second],)

    def learn(self, feedback: Feedback) -> None:
        for _ in range(feedback.num_agreed):
            self.acceptance.add(1)
        if feedback.num_agreed < min(len(feedback.proposed), len(feedback.emitted)):
            self.acceptance.add(0)

    def forget(self, sequence: Sequence) -> None:
        self.latest.pop(sequence.id, None)
