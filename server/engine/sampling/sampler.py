"""Logits of several sequences -> each one's tokens: adjusted as its request asks, then drawn.

Drafts and checks both pass here. A draft has one row of logits for each sequence; a check of four drafted
tokens has five.
"""

from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from torch import Tensor

from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.draw import Draw
from server.engine.sampling.logits_processor import LogitsProcessor
from server.engine.types import SamplingParams


@dataclass(frozen=True)
class Span:
    """The last `num_rows` rows of logits after a sequence's `ids` and after each token `drafted` to follow them."""

    ids: list[int]
    drafted: list[int]
    num_rows: int
    sampling: SamplingParams
    seed: int
    processor: LogitsProcessor | None

    @property
    def draws(self) -> list[Draw]:
        first = len(self.ids) + len(self.drafted) + 1 - self.num_rows
        return [Draw(self.sampling, self.seed, first + i) for i in range(self.num_rows)]


def adjusted(logits: Tensor, spans: list[Span]) -> Tensor:
    """The rows of all spans as their requests want them; `logits` itself where none asks for anything."""
    if all(span.processor is None for span in spans):
        return logits
    logits = logits.clone()
    rows = logits.split([span.num_rows for span in spans])
    for span, part in zip(spans, rows, strict=True):
        if span.processor:
            span.processor.adjust(part, span.ids, span.drafted)
    return logits


class Sampled(NamedTuple):
    """The full model's own token in each row of one sequence, and the rows as the model gave them."""

    token_ids: list[int]
    logits: Tensor


def sample(logits: Tensor, spans: list[Span]) -> list[Sampled]:
    """The tokens of each span; `logits` [rows, vocabulary] has the spans' rows one after the other."""
    tokens = iter(draw_tokens(adjusted(logits, spans), [draw for span in spans for draw in span.draws]))
    rows = logits.split([span.num_rows for span in spans])
    return [Sampled(list(islice(tokens, span.num_rows)), part) for span, part in zip(spans, rows, strict=True)]
