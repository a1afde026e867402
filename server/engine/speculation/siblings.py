"""Second choices beside a greedy draft: in place of one of its tokens, where the draft was not sure.

What comes second at a token is known for nothing. It is right where all tokens before are, and it in place of the
first: a tree as OPT-Tree's (arXiv 2406.17276), without what would follow a second choice, which would take passes.
"""

import math

from torch import Tensor

from server.engine.model.native_decoder import Seconds
from server.engine.model.native_head import NativeHead
from server.engine.sampling.native_sampling import likeliest
from server.engine.sequence import Sequence
from server.engine.speculation.averages import Average
from server.engine.speculation.base import Feedback, Paths

MEMORY, FIRST_ACCEPTANCE = 64, 0.7


class Siblings:
    """What may stand in place of the tokens of greedy chains."""

    def __init__(self) -> None:
        self.latest: dict[int, tuple[list[int], Seconds]] = {}
        """By sequence id, its chain and what came second to each token."""
        self.acceptance = Average(MEMORY, FIRST_ACCEPTANCE)

    def note(self, sequence: Sequence, chain: list[int], seconds: Seconds) -> None:
        """Remembers a chain until its next one."""
        self.latest[sequence.id] = chain, seconds

    def branches(self, sequence: Sequence, row_price: float, most: int) -> Paths:
        """The likeliest ways to a second choice that are worth a row; with the chain at most so many tokens."""
        chain, seconds = self.latest.pop(sequence.id, ([], []))
        worth = [self.acceptance.value**depth * chance for depth, (_, chance) in enumerate(seconds)]
        depths = sorted((d for d, each in enumerate(worth) if each >= row_price), key=worth.__getitem__, reverse=True)
        return tuple([*chain[:depth], seconds[depth][0]] for depth in depths[: max(most - len(chain), 0)])

    def learn(self, feedback: Feedback) -> None:
        for _ in range(feedback.num_agreed):
            self.acceptance.add(1)
        if feedback.num_agreed < min(len(feedback.proposed), len(feedback.emitted)):
            self.acceptance.add(0)

    def forget(self, sequence: Sequence) -> None:
        self.latest.pop(sequence.id, None)


def second_choice(logits: Tensor, top: float, head: NativeHead | None) -> tuple[int, float]:
    """What came second in a row of logits [outputs], the likeliest of which has probability `top`."""
    first, second = likeliest(logits[None], 2)[0]
    chance = top * math.exp(float(logits[second] - logits[first]))
    return head.ids[second] if head else second, chance
