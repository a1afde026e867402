"""Which tokens of an answer were drafted, step by step, in texts. A step is told once its texts are certain.

A token's text is the part of the answer between its start and the next one's, so all of them, joined, are the answer:
of a character in three tokens the last one has it, and what a stop string cuts away is no token's.
"""

import codecs
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from server.engine.text.codec import TextStream
from server.engine.types import TracedStep

LONGEST_CHARACTER = 4
"""Bytes, and so tokens, that a character may have in UTF-8."""


@dataclass(frozen=True)
class StepTexts:
    """A step's drafted tokens that agreed, the model's own after them, and the drafted ones that did not agree."""

    origin: str
    accepted: tuple[str, ...]
    own: str
    rejected: tuple[str, ...]


class OpenStep(NamedTuple):
    """A step whose texts may still change; its tokens are `first` to before `end` of the answer."""

    origin: str
    first: int
    end: int
    num_accepted: int
    rejected: tuple[str, ...]


class TextTrace:
    """The steps behind the text of one stream."""

    def __init__(self, stream: TextStream) -> None:
        self.stream = stream
        self.num_tokens = 0
        self.open: deque[OpenStep] = deque()
        self.text = ""
        """What was released of the open steps' texts, from `offset` of the answer on."""
        self.offset = 0
        self.latest: list[int] = []

    def add(self, step: TracedStep, token_ids: list[int]) -> None:
        """Takes a step whose tokens were pushed; a stop string cuts away what comes after it, rejected tokens too."""
        num_kept = self.stream.num_tokens - self.num_tokens if self.stream.is_stopped else len(token_ids)
        before = [*self.latest, *token_ids[: step.num_accepted]]
        rejected = self.continuation(before, step.rejected) if num_kept == len(token_ids) else ()
        end = self.num_tokens + num_kept
        self.open.append(OpenStep(step.origin, self.num_tokens, end, min(step.num_accepted, num_kept), rejected))
        self.num_tokens = end
        self.latest = [*self.latest, *token_ids][-LONGEST_CHARACTER:]

    def continuation(self, before: list[int], token_ids: Sequence[int]) -> tuple[str, ...]:
        """The texts of tokens that might have followed; special ones are written out."""
        vocabulary, decoder = self.stream.codec.vocabulary, codecs.getincrementaldecoder("utf-8")("replace")
        # A character that was begun goes on in them.
        for token_id in before[-LONGEST_CHARACTER:]:
            decoder.decode(vocabulary[token_id].content)
        last = len(token_ids) - 1
        return tuple(decoder.decode(vocabulary[token].content, i == last) for i, token in enumerate(token_ids))

    def take(self, released: str, is_end: bool = False) -> tuple[StepTexts, ...]:
        """The steps that are certain with this new text, the answer's last or not."""
        self.text += released
        certain = []
        while self.open and (is_end or self.start(self.open[0].end) <= self.stream.num_released):
            certain.append(self.texts(self.open.popleft()))
        return tuple(certain)

    def texts(self, step: OpenStep) -> StepTexts:
        starts = [self.start(i) - self.offset for i in range(step.first, step.end + 1)]
        texts = [self.text[start:end] for start, end in pairwise(starts)]
        self.text, self.offset = self.text[starts[-1] :], self.offset + starts[-1]
        return StepTexts(
            step.origin, tuple(texts[: step.num_accepted]), "".join(texts[step.num_accepted :]), step.rejected
        )

    def start(self, index: int) -> int:
        """Where the text of a token begins; of one that is still to come, after all that was pushed."""
        stream = self.stream
        if index < stream.num_tokens:
            return stream.starts[index]
        return stream.num_released + len(stream.held) + len(stream.pending)
