"""Continues each token with those that were last written after it."""

from array import array
from collections import OrderedDict
from heapq import heappop, heappush
from typing import Self

from server.engine.sequence import Sequence
from server.engine.speculation.averages import Average, KindAverages
from server.engine.speculation.base import Drafter, DraftingParts, Feedback, Paths, Proposals, register

MAX_OWNERS = 16
"""Tables that are kept, 16 bytes for each token of the vocabulary: 39 MB for 16 of 151,936 tokens."""
SUCCESSORS = 4
"""Of each token that are known, the latest first."""
MEMORY, KIND_MEMORY, FIRST_ACCEPTANCE = 64, 256, 0.3
FIRST_CHANCES = (0.3, 0.1, 0.05, 0.02)
"""That the next token is the latest successor, the one before it, and so on."""
UNKNOWN = -1


class Successors:
    """The latest successors of each token of a vocabulary."""

    def __init__(self, vocabulary_size: int) -> None:
        self.table = array("i", [UNKNOWN]) * (SUCCESSORS * vocabulary_size)

    def of(self, token: int) -> list[int]:
        """The latest first; nothing where the token has had none."""
        place = SUCCESSORS * token
        return [each for each in self.table[place : place + SUCCESSORS] if each != UNKNOWN]

    def add(self, token: int, successor: int) -> None:
        known = self.of(token)
        if known[:1] != [successor]:
            latest = [successor, *(each for each in known if each != successor)][:SUCCESSORS]
            self.table[SUCCESSORS * token : SUCCESSORS * token + len(latest)] = array("i", latest)

    def chain(self, token: int, limit: int) -> list[int]:
        """At most `limit` tokens, each the latest successor of the one before."""
        found: list[int] = []
        while len(found) < limit and (latest := self.of(token)[:1]):
            found += latest
            token = latest[0]
        return found


@register
class RecyclingDrafter(Drafter):
    """Follows the successors of tokens, those that were written last; Token Recycling, arXiv 2408.08696.

    Published: about 2 over plain decoding of Vicuna 7B, on a GPU, with a tree of 80 tokens from the eight likeliest
    successors of each by the logits. Here successors are what texts had behind a token, the latest first: those of the
    logits were right no more often. A draft is a chain of the latest ones, which ends where it is no longer likely
    enough to be worth its row; where drafts may be trees, so is each way through earlier ones. Keys have tables of
    their own, also of what their prompts say. It costs no pass, and a write to the table for each token.
    """

    name = "recycling"
    summary = "each token's latest successor; costs no pass"
    published = "1.83-2.22"
    is_free = True

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.tables: OrderedDict[str | None, Successors] = OrderedDict()
        self.lengths: dict[int, int] = {}
        """How many ids of each sequence are in its table."""
        self.acceptances = KindAverages(MEMORY, KIND_MEMORY, FIRST_ACCEPTANCE)
        """Of each sequence's tokens, each behind one that was right."""
        self.expected: dict[int, float] = {}
        """Tokens of each sequence's proposal that are expected to be right."""
        self.latest: dict[int, list[int]] = {}
        """The successors of each sequence's last id."""
        self.chances = [Average(MEMORY, first) for first in FIRST_CHANCES]
        """That one of them is right, the latest first."""

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        return cls(parts.model.config.vocabulary_size)

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        proposals: Proposals = {}
        for sequence in sequences:
            successors = self.grown(sequence)
            self.latest[sequence.id] = successors.of(sequence.ids[-1])
            acceptance = self.acceptances.value(sequence)
            limit = likely_length(acceptance, row_price, sequence.draft_limit)
            if forced := sequence.forced(limit):
                proposals[sequence.id], self.expected[sequence.id] = forced, len(forced)
            elif found := successors.chain(sequence.ids[-1], limit):
                proposals[sequence.id], self.expected[sequence.id] = found, expected_right(acceptance, len(found))
        return proposals

    def promise(self, sequence: Sequence) -> float:
        return self.expected[sequence.id]

    def branches(self, sequence: Sequence, row_price: float, most: int) -> Paths:
        """The likeliest ways through the successors, a token at a time, as OPT-Tree (arXiv 2406.17276) grows a tree."""
        successors, last = self.tables[sequence.request.owner], sequence.ids[-1]
        chances = [self.acceptances.value(sequence), *(chance.value for chance in self.chances[1:])]
        open_ways: list[tuple[float, list[int]]] = [(-1.0, [])]
        found: list[list[int]] = []
        while open_ways and len(found) <= most:
            chance, way = heappop(open_ways)
            found.append(way)
            if len(way) == sequence.draft_limit:
                continue
            for token, share in zip(successors.of(way[-1] if way else last), chances, strict=False):
                if -chance * share >= row_price:
                    heappush(open_ways, (chance * share, [*way, token]))
        inner = {tuple(way[:-1]) for way in found}
        return tuple(way for way in found[1:] if tuple(way) not in inner)

    def grown(self, sequence: Sequence) -> Successors:
        """The table of the sequence's owner, with what is new in the sequence; the least used one makes room."""
        owner = sequence.request.owner
        if owner not in self.tables:
            self.tables[owner] = Successors(self.vocabulary_size)
        self.tables.move_to_end(owner)
        if len(self.tables) > MAX_OWNERS:
            self.tables.popitem(last=False)
        table, first = self.tables[owner], self.lengths.get(sequence.id, 0)
        for before, after in zip(sequence.ids[first:], sequence.ids[first + 1 :], strict=False):
            table.add(before, after)
        self.lengths[sequence.id] = len(sequence.ids) - 1
        return table

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        is_wrong = feedback.num_agreed < min(len(feedback.proposed), len(feedback.emitted))
        for is_right in [1] * feedback.num_agreed + [0] * is_wrong:
            self.acceptances.add(sequence, is_right)
        for token, chance in zip(self.latest[sequence.id], self.chances, strict=False):
            chance.add(token == feedback.emitted[0])

    def forget(self, sequence: Sequence) -> None:
        self.lengths.pop(sequence.id, None)
        self.acceptances.forget(sequence)
        self.expected.pop(sequence.id, None)
        self.latest.pop(sequence.id, None)


def likely_length(acceptance: float, row_price: float, longest: int) -> int:
    """Tokens of a chain that are all right with a chance above the price of a row; one at least, or it never learns."""
    length, chance = 0, acceptance
    while length < longest and (chance >= row_price or length == 0):
        length, chance = length + 1, chance * acceptance
    return length


def expected_right(acceptance: float, length: int) -> float:
    """Tokens of a chain that are right in the mean, each with this chance if the one before it is."""
    return sum(acceptance**place for place in range(1, length + 1))
