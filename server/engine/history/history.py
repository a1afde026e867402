"""What answers of the past tell of those to come, apart by owner and domain."""

import secrets
from array import array
from collections.abc import Mapping, Sequence
from ctypes import addressof
from hashlib import blake2b
from typing import NamedTuple

from torch import Tensor

from server.engine.history.counts import CONTEXTS, ENTRY_BYTES, LONGEST_CONTEXT, Counts, Source, library
from server.engine.types import MAX_DRAFT

OWN_WEIGHT = 2
"""What a token of the text itself counts as much as, of the past."""
PREDICTED_TIMES = 4
"""How often an expected answer is counted."""
NO_TOKENS = array("i", bytes(4 * MAX_DRAFT))


class Continuation(NamedTuple):
    """Tokens that are likely to follow, and how many of them are expected to be right."""

    ids: list[int]
    expected: float


class Text:
    """A running text: its own counts, and the salts under which it finds those of the past."""

    def __init__(self, counts: Counts, past: Counts, salts: list[int]) -> None:
        self.counts, self.past = counts, past
        self.length = 0
        sources = [Source(counts.handle, 0, OWN_WEIGHT), *(Source(past.handle, salt, 1) for salt in salts)]
        self.sources = (Source * len(sources))(*sources)
        self.expected = array("f", [0.0])
        self.addresses = addressof(self.sources), self.expected.buffer_info()[0]

    def continuation(self, ids: list[int], limit: int, floor: float) -> Continuation:
        """At most `limit` tokens after `ids`, as long as all of them together are at least so likely to be right.

        `ids` are all of the text so far; what is new of it is counted.
        """
        begin = max(self.length - LONGEST_CONTEXT, 0)
        first, self.length = self.length - begin, len(ids)
        return self.guessed(array("i", ids[begin:]), first, limit, floor)

    def predict(self, prompt: list[int], answer: Sequence[int]) -> None:
        """Counts an answer that is expected after the prompt; it is surer than what is only like the text."""
        context = prompt[-LONGEST_CONTEXT:]
        for _ in range(PREDICTED_TIMES):
            self.counts.add(0, [*context, *answer], len(context))

    def further(self, ids: list[int], drafted: list[int], limit: int, floor: float) -> Continuation:
        """The same after tokens that are drafted already, and are not counted."""
        tokens = array("i", (ids[-LONGEST_CONTEXT:] + drafted)[-LONGEST_CONTEXT:])
        return self.guessed(tokens, len(tokens), limit, floor)

    def guessed(self, tokens: "array[int]", first: int, limit: int, floor: float) -> Continuation:
        """At most `limit` tokens after these, of which those from `first` on are counted."""
        size = len(tokens)
        tokens.extend(NO_TOKENS[:limit])
        sources, expected = self.addresses
        num = self.counts.native.counts_draft(
            sources, len(self.sources), tokens.buffer_info()[0], first, size, limit, floor, expected
        )
        return Continuation(tokens[size : size + num].tolist(), self.expected[0])


def domain_salt(domain: str) -> int:
    """The salt of what everyone may find: the same in every process, so that artifacts have it."""
    return int.from_bytes(blake2b(domain.encode(), digest_size=8).digest(), "little")


def answer_counts(domain: str, answers: Sequence[tuple[list[int], list[int]]], least_visits: int) -> Tensor:
    """What the answers to prompts tell of a domain, as seeds of a `History`; contexts that were seen so often."""
    counts = Counts(2 * CONTEXTS * sum(len(answer) for _, answer in answers))
    for prompt, answer in answers:
        counts.add(domain_salt(domain), prompt + answer, len(prompt))
    return counts.entries(least_visits)


class History:
    """What answers of the past tell of those to come, in one table of bounded size.

    Each owner's contexts are hashed with a secret of their own, so nobody's drafts come from another's texts.
    """

    def __init__(self, nbytes: int, seeds: Mapping[str, Tensor]) -> None:
        """`seeds`: by domain, entries that a calibration has counted. With 0 bytes nothing is learned beyond them."""
        self.is_learning = nbytes > 0
        least = 2 * ENTRY_BYTES * sum(map(len, seeds.values()))
        self.past = Counts.of_bytes(max(nbytes, least))
        for entries in seeds.values():
            self.past.load(entries)
        self.secret = secrets.token_bytes(32)
        self.texts: dict[int, Text] = {}
        """The running texts by the ids of their sequences."""

    @staticmethod
    def is_built() -> bool:
        return library() is not None

    def salts(self, domain: str, owner: str | None) -> list[int]:
        """Of the owner, then of everyone; where nobody owns it, of everyone alone."""
        return [self.salt(domain, owner), domain_salt(domain)] if owner is not None else [domain_salt(domain)]

    def salt(self, domain: str, owner: str | None) -> int:
        """Of what an owner's answers are counted under."""
        if owner is None:
            return domain_salt(domain)
        name = f"{len(owner)} {owner} {domain}"
        return int.from_bytes(blake2b(name.encode(), digest_size=8, key=self.secret).digest(), "little")

    def text(self, domain: str, owner: str | None, longest: int) -> Text:
        """A text that begins now, and counts `longest` tokens at most."""
        return Text(Counts(2 * CONTEXTS * longest), self.past, self.salts(domain, owner))

    def add(self, domain: str, owner: str | None, ids: list[int], first: int) -> None:
        """Counts an answer, which begins at `first`; its prompt is context, and not counted."""
        if self.is_learning:
            self.past.add(self.salt(domain, owner), ids, first)
