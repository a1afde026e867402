"""A tree of drafts, checked in one pass: each drafted token is a row, and what branches have in common is one row.

Row 0 is the text's last token. Drafted 5 6 7 and 5 8 beside it, rows 1, 2 and 3 are 5, 6 and 7, and row 4 is 8, behind
row 1: it has the position of 6, attends to the text and to 5, and its token is drawn with the noise of its position. So
every row is what plain decoding would give, bit for bit, and a chain is a tree of one branch.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, Self

from torch import Tensor

from server.engine.kvcache.batch import Row, TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.sampling.sampler import Sampled, Span
from server.engine.sequence import Sequence
from server.engine.speculation.base import Draft
from server.engine.speculation.verification import count_agreeing


class Stretch(NamedTuple):
    """Rows of which each follows the one before: for the last `num_rows` tokens of a branch, behind row `parent`."""

    drafted: list[int]
    num_rows: int
    parent: int


class CheckedDraft(NamedTuple):
    """The branch of which most was right, the full model's own token in each row, and the states they were drawn from.

    `elsewhere` are the places of its tokens that the cache keeps elsewhere than at the positions from `first` on.
    """

    draft: Draft
    own: Sampled
    states: Tensor
    elsewhere: list[int]
    first: int


@dataclass(frozen=True)
class Tree:
    """The rows of one sequence's check: those of its draft, then what each other continuation has for itself."""

    sequence: Sequence
    draft: Draft
    stretches: list[Stretch]
    branches: list[list[int]]
    """The rows of the draft and of each other continuation, row 0 in front."""

    @classmethod
    def of(cls, sequence: Sequence, draft: Draft) -> Self:
        """As many of the draft's tokens as there are places for."""
        rows: dict[tuple[int, int], int] = {}
        stretches, branches, left = list[Stretch](), list[list[int]](), sequence.draft_room
        for ids in (draft.ids, *draft.others):
            branch = [0]
            while len(branch) <= len(ids) and (row := rows.get((branch[-1], ids[len(branch) - 1]))):
                branch.append(row)
            own = ids[len(branch) - 1 :][:left]
            if own or not stretches:
                stretches.append(Stretch(ids[: len(branch) - 1 + len(own)], len(own), branch[-1]))
            for token in own:
                rows[branch[-1], token] = len(rows) + 1
                branch.append(len(rows))
            left -= len(own)
            branches.append(branch)
        return cls(sequence, draft, stretches, branches)

    @property
    def num_rows(self) -> int:
        return 1 + sum(stretch.num_rows for stretch in self.stretches)

    @property
    def rows(self) -> list[Row]:
        slot, cursor, last = self.sequence.slot, self.sequence.cursor, self.sequence.ids[-1]
        chain, *others = self.stretches
        starts = [(cursor + 1 + len(each.drafted) - each.num_rows, each) for each in others]
        return [(slot, cursor, [last, *chain.drafted])] + [
            (slot, start, each.drafted[-each.num_rows :]) for start, each in starts
        ]

    @property
    def spans(self) -> list[Span]:
        chain, *others = self.stretches
        spans = [self.sequence.span(chain.drafted, chain.num_rows + 1)]
        return spans + [self.sequence.span(each.drafted, each.num_rows) for each in others]

    def best(self, own: list[Sampled], states: Tensor) -> CheckedDraft:
        """The branch of which most is right, by the tokens of each span; of equal ones the draft."""
        if len(self.stretches) == 1:
            return CheckedDraft(self.draft, own[0], states, [], 0)
        tokens = [token for each in own for token in each.token_ids]
        continuations = [self.draft.ids, *self.draft.others]
        numbers = [
            count_agreeing(ids[: len(branch) - 1], [tokens[row] for row in branch])
            for ids, branch in zip(continuations, self.branches, strict=True)
        ]
        best = max(range(len(numbers)), key=numbers.__getitem__)
        if best == 0:
            return CheckedDraft(self.draft, own[0], states[: len(own[0].token_ids)], [], 0)
        branch, ids = self.branches[best], continuations.pop(best)
        right, cursor = branch[: numbers[best] + 1], self.sequence.cursor
        firsts = accumulate((len(each.token_ids) for each in own), initial=0)
        scores = {
            row: score
            for first, each in zip(firsts, own, strict=False)
            for row, score in enumerate(each.logprobs, first)
        }
        sampled = Sampled([tokens[row] for row in branch], [scores[row] for row in right if scores])
        draft = self.draft._replace(ids=ids[: len(branch) - 1], others=tuple(continuations))
        first = next((depth for depth, row in enumerate(right) if row != depth), len(right))
        return CheckedDraft(draft, sampled, states[right], [cursor + row for row in right[first:]], cursor + first)


def check_batch(trees: list[Tree], cache: KVCache) -> TokenBatch:
    """The rows of all trees, one tree behind the other."""
    rows, forks, num_tokens = list[Row](), dict[int, int](), 0
    for tree in trees:
        forks |= {len(rows) + i: num_tokens + each.parent for i, each in enumerate(tree.stretches) if i}
        rows += tree.rows
        num_tokens += tree.num_rows
    return TokenBatch(rows, cache, forks)
