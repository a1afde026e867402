"""The full model's own token in each row of a check: one pass, and for most requests one call of the kernels."""

import torch
from torch import Tensor

from server.engine.kvcache.batch import Row, TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checked import Checked
from server.engine.model.decoder import Decoder
from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.draw import Draw
from server.engine.sampling.native_sampling import packed
from server.engine.sampling.sampler import Sampled, Span, sample
from server.engine.types import SamplingParams

GREEDY = SamplingParams()


def own_tokens(
    model: Decoder, cache: KVCache, rows: list[Row], spans: list[Span], read: list[Row]
) -> tuple[list[Sampled], Tensor]:
    """The tokens of each span, whose rows are checked, and the states [tokens, hidden_size] of these, then of `read`.

    After rows that are only read no token is chosen. A request that adjusts its logits is drawn again from those, apart
    from the others.
    """
    if not rows:
        return [], model.forward(TokenBatch(read, cache), cache)
    checked = check(model, cache, rows, read, [draw for span in spans for draw in first_draws(span)])
    logits, own, first = checked.logits.split([span.num_rows for span in spans]), [], 0
    for span, part in zip(spans, logits, strict=True):
        last = first + span.num_rows
        own += sample(part, [span]) if span.processor else [Sampled(checked.tokens[first:last], part)]
        first = last
    return own, checked.states


def check(model: Decoder, cache: KVCache, rows: list[Row], read: list[Row], draws: list[Draw]) -> Checked:
    """One token after each of the tokens that are checked, from the model's own logits; states of those read too."""
    if model.native:
        return model.native.checked(TokenBatch([*rows, *read], cache), cache, packed(draws), len(draws))
    checked = model.greedy(TokenBatch(rows, cache), cache)
    states = checked.states
    if read:
        # Torch's attention pads rows to the longest, so a prompt's part would make each of the others as long.
        states = torch.cat((states, model.forward(TokenBatch(read, cache), cache)))
    return Checked(draw_tokens(checked.logits, draws), states, checked.logits)


def first_draws(span: Span) -> list[Draw]:
    """Its draws; greedy, which costs little, where they will be made again."""
    return [draw._replace(sampling=GREEDY) for draw in span.draws] if span.processor else span.draws
