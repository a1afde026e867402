"""The full model's own token in each row of a check: one pass, and for most requests one call of the kernels."""

from torch import Tensor

from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checked import Checked
from server.engine.model.decoder import Decoder
from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.draw import Draw
from server.engine.sampling.native_sampling import packed
from server.engine.sampling.sampler import Sampled, Span, sample
from server.engine.types import SamplingParams

GREEDY = SamplingParams()


def own_tokens(model: Decoder, cache: KVCache, batch: TokenBatch, spans: list[Span]) -> tuple[list[Sampled], Tensor]:
    """The tokens of each span, and the states [tokens, hidden_size] that they were drawn from.

    A request that adjusts its logits is drawn again from those, apart from the others.
    """
    checked = check(model, cache, batch, [draw for span in spans for draw in first_draws(span)])
    rows, own, first = checked.logits.split([span.num_rows for span in spans]), [], 0
    for span, part in zip(spans, rows, strict=True):
        last = first + span.num_rows
        own += sample(part, [span]) if span.processor else [Sampled(checked.tokens[first:last], part)]
        first = last
    return own, checked.states


def check(model: Decoder, cache: KVCache, batch: TokenBatch, draws: list[Draw]) -> Checked:
    """One token for each row of the batch, from the model's own logits."""
    if model.native:
        return model.native.checked(batch, cache, packed(draws))
    checked = model.greedy(batch, cache)
    return checked._replace(tokens=draw_tokens(checked.logits, draws))


def first_draws(span: Span) -> list[Draw]:
    """Its draws; greedy, which costs little, where they will be made again."""
    return [draw._replace(sampling=GREEDY) for draw in span.draws] if span.processor else span.draws
