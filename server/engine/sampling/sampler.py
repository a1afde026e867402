"""Logits of several sequences -> each one's tokens: adjusted as its request asks, then drawn.

Drafts and checks both pass here. A draft has one row of logits for each sequence; a check of four drafted
tokens has five.
"""

from dataclasses import dataclass, field, replace
from itertools import islice, takewhile

from torch import Tensor

from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.draw import Draw
from server.engine.sampling.logits_processor import LogitsProcessor
from server.engine.sampling.logprobs import score
from server.engine.types import SamplingParams, TokenLogprobs


@dataclass(frozen=True)
class Span:
    """The last `num_rows` rows of logits after a sequence's `ids` and after each token `drafted` to follow them.

    `num_logprobs` as in `GenerationRequest`.
    """

    ids: list[int]
    drafted: list[int]
    num_rows: int
    sampling: SamplingParams
    seed: int
    processor: LogitsProcessor | None
    num_logprobs: int | None = None

    def rows(self, first: int, last: int) -> "Span":
        """Some of its rows, counted from 0, and the drafted tokens before them."""
        if last - first == self.num_rows:
            return self
        num_drafted = len(self.drafted) + last - self.num_rows
        return replace(self, drafted=self.drafted[:num_drafted], num_rows=last - first)

    @property
    def reads_logits(self) -> bool:
        """Whether more is wanted of its logits than what the model itself draws from them."""
        return self.processor is not None or self.num_logprobs is not None

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


@dataclass
class Sampled:
    """The full model's own token in each row of one sequence.

    Where the request asks for them, the log-probabilities of those that may be kept: up to the first one that is not
    what was drafted there.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def go_on(self, span: Span, tokens: list[int], logits: Tensor) -> None:
        """Takes in the next rows; `logits` [rows, vocabulary] are as the model gave them."""
        if span.num_logprobs is not None and len(self.logprobs) == len(self.token_ids):
            following = span.drafted[len(span.drafted) + 1 - span.num_rows :]
            num_right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, following, strict=False)))
            kept = tokens[: num_right + 1]
            self.logprobs += score(logits[: len(kept)], kept, span.num_logprobs)
        self.token_ids += tokens


def sample(logits: Tensor, spans: list[Span]) -> list[Sampled]:
    """The tokens of each span; `logits` [rows, vocabulary] has the spans' rows one after the other."""
    tokens = iter(draw_tokens(adjusted(logits, spans), [draw for span in spans for draw in span.draws]))
    rows = logits.split([span.num_rows for span in spans])
    sampled = [Sampled() for _ in spans]
    for each, span, part in zip(sampled, spans, rows, strict=True):
        each.go_on(span, list(islice(tokens, span.num_rows)), part)
    return sampled
