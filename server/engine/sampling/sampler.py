"""Logits of several sequences -> each one's tokens: adjusted as its request asks, then drawn.

Draft and verification both pass here, with one row or several for each sequence.
"""

import itertools
from typing import NamedTuple

from torch import Tensor

from server.engine.sampling.distribution import Draw, choose
from server.engine.sequence import Sequence


class Span(NamedTuple):
    """The last `num_rows` rows of logits after a sequence's ids and what was drafted to follow them."""

    sequence: Sequence
    drafted: list[int]
    num_rows: int

    @property
    def draws(self) -> list[Draw]:
        first = len(self.drafted) + 1 - self.num_rows
        return [self.sequence.draw(first + i) for i in range(self.num_rows)]


def adjusted(logits: Tensor, spans: list[Span]) -> Tensor:
    """The rows of all spans as their requests want them; `logits` itself where none asks for anything."""
    if all(span.sequence.processor is None for span in spans):
        return logits
    logits = logits.clone()
    rows = logits.split([span.num_rows for span in spans])
    for span, part in zip(spans, rows, strict=True):
        if span.sequence.processor:
            span.sequence.processor.adjust(part, span.sequence.ids, span.drafted)
    return logits


class Choices(NamedTuple):
    """The full model's own choice in each row of one sequence, and the rows as the model gave them, where needed."""

    token_ids: list[int]
    logits: Tensor | None


def choices(logits: Tensor, spans: list[Span]) -> list[Choices]:
    """The choices of each span; `logits` [rows, vocabulary] has the spans' rows one after the other."""
    tokens = choose(adjusted(logits, spans), [draw for span in spans for draw in span.draws])
    rows = logits.split([span.num_rows for span in spans])
    return [Choices(ids, part) for ids, part in zip(dealt(tokens, spans), rows, strict=True)]


def greedy_choices(tokens: list[int], spans: list[Span]) -> list[Choices]:
    """The choices of spans that want the greedy tokens and nothing else."""
    return [Choices(ids, None) for ids in dealt(tokens, spans)]


def dealt(tokens: list[int], spans: list[Span]) -> list[list[int]]:
    rest = iter(tokens)
    return [list(itertools.islice(rest, span.num_rows)) for span in spans]
