"""The full model's own token in each row of a check: one pass, and for most requests one call of the kernels."""

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from server.engine.kvcache.batch import Row, TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checked import MOST_LOGITS, Checked
from server.engine.model.decoder import Decoder
from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.draw import Draw
from server.engine.sampling.native_sampling import packed
from server.engine.sampling.sampler import Sampled, Span, adjusted
from server.engine.types import SamplingParams

GREEDY = SamplingParams()
MOST_ADJUSTED = 8
"""Rows whose logits are adjusted at once: penalties make several copies of them."""


def own_tokens(
    model: Decoder, cache: KVCache, batch: TokenBatch, spans: list[Span], read: list[Row]
) -> tuple[list[Sampled], Tensor]:
    """The tokens of each span of a batch, and the states [tokens, hidden_size] of its rows, then of those of `read`.

    After rows that are only read no token is chosen. A request that adjusts its logits is drawn again from those, apart
    from the others. Logits of more than `MOST_LOGITS` rows are never held: what is wanted of them is taken at once.
    """
    if not spans:
        return [], model.forward(TokenBatch(read, cache), cache)
    own = [Sampled() for _ in spans]
    draws = [draw for span in spans for draw in first_draws(span)]
    for checked, parts in zip(check(model, cache, batch, read, draws), pieces(spans), strict=True):
        tokens = iter(checked.tokens)
        for (number, span), part in zip(parts, logits_of(checked.logits, [span for _, span in parts]), strict=True):
            drawn = list(islice(tokens, span.num_rows))
            own[number].go_on(span, redrawn(span, part) if span.processor else drawn, part)
    return own, checked.states


def logits_of(logits: Tensor, spans: list[Span]) -> Sequence[Tensor]:
    """The rows of each span; all of them for each where nobody reads them."""
    if any(span.reads_logits for span in spans):
        sizes = [span.num_rows for span in spans]
        parts: tuple[Tensor, ...] = logits[: sum(sizes)].split(sizes)
        return parts
    return [logits] * len(spans)


def check(model: Decoder, cache: KVCache, batch: TokenBatch, read: list[Row], draws: list[Draw]) -> Iterator[Checked]:
    """A token after each of the batch's from the model's own logits, `MOST_LOGITS` at a time; all have all states.

    The states are those of what is only read, too. Logits of the next tokens are written over those of the last.
    """
    done = 0
    if model.native:
        whole, first = TokenBatch([*batch.rows, *read], cache, batch.forks), draws[:MOST_LOGITS]
        checked = model.native.checked(whole, cache, packed(first), len(first))
        states, done = checked.states, len(first)
        yield checked
    else:
        states = model.forward(batch, cache)
        if read:
            # Torch's attention pads rows to the longest, so a prompt's part would make each of the others as long.
            states = torch.cat((states, model.forward(TokenBatch(read, cache), cache)))
    for start in range(done, len(draws), MOST_LOGITS):
        some = draws[start : start + MOST_LOGITS]
        logits = model.passing_logits(states[start : start + len(some)])
        yield Checked(draw_tokens(logits, some), states, logits)


def pieces(spans: list[Span]) -> Iterator[list[tuple[int, Span]]]:
    """The spans in pieces of `MOST_LOGITS` rows, but for the last: parts of them, each with its span's number."""
    parts, room = list[tuple[int, Span]](), MOST_LOGITS
    for number, span in enumerate(spans):
        first = 0
        while first < span.num_rows:
            last = min(first + room, span.num_rows)
            parts.append((number, span.rows(first, last)))
            room -= last - first
            first = last
            if not room:
                yield parts
                parts, room = [], MOST_LOGITS
    if parts:
        yield parts


def first_draws(span: Span) -> list[Draw]:
    """Its draws; greedy, which costs little, where they will be made again."""
    return [draw._replace(sampling=GREEDY) for draw in span.draws] if span.processor else span.draws


def redrawn(span: Span, logits: Tensor) -> list[int]:
    """The tokens of its rows, whose logits its request adjusts, in copies of a few rows."""
    tokens = list[int]()
    for first in range(0, span.num_rows, MOST_ADJUSTED):
        few = span.rows(first, min(first + MOST_ADJUSTED, span.num_rows))
        tokens += draw_tokens(adjusted(logits[first : first + few.num_rows], [few]), few.draws)
    return tokens
