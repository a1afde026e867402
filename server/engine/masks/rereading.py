"""Reads tokens that the cache holds already once more: what each sub-layer made of them, and what a draft would."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.checked import MOST_LOGITS
from server.engine.model.decoder import Decoder
from server.engine.sampling.distribution import draw_tokens
from server.engine.sampling.sampler import Span
from server.engine.sequence import Sequence
from server.engine.types import FULL_MODEL, DraftModel


@dataclass(frozen=True)
class Reader:
    """The last tokens of a sequence that a full pass has read; no read changes the cache (`Decoder.sublayers`)."""

    model: Decoder
    cache: KVCache
    slot: int
    first: int
    """The place of the first of the tokens."""
    token_ids: list[int]

    @classmethod
    def of_last(cls, model: Decoder, cache: KVCache, sequence: Sequence, ids: list[int], count: int) -> "Reader":
        """At most `count` tokens before the cursor; `ids` may have more than the sequence's, those of this step."""
        first = max(sequence.cursor - count, 0)
        return cls(model, cache, sequence.slot, first, ids[first : sequence.cursor])

    @property
    def num_sublayers(self) -> int:
        return 2 * self.model.config.num_layers

    @property
    def batch(self) -> TokenBatch:
        return TokenBatch([(self.slot, self.first, self.token_ids)], self.cache)

    @cached_property
    def trace(self) -> Tensor:
        """The residual stream [sub-layers + 1, tokens, hidden_size] in front of each sub-layer, and at the end."""
        batch, stream = self.batch, [self.model.sublayers(self.batch, self.cache, None, range(0))]
        for number in range(self.num_sublayers):
            stream.append(self.model.sublayers(batch, self.cache, stream[-1], range(number, number + 1)))
        return torch.stack(stream)

    def through(self, states: Tensor, sublayers: range) -> Tensor:
        """States [tokens, variants, hidden_size] behind some sub-layers: several for each token, at its place."""
        tokens, variants, size = states.shape
        rows = [(self.slot, self.first + i, [self.token_ids[i]]) for i in range(tokens) for _ in range(variants)]
        batch = TokenBatch(rows, self.cache)
        return self.model.sublayers(batch, self.cache, states.reshape(-1, size), sublayers).view(states.shape)

    def likeliest(self, residual: Tensor) -> Tensor:
        """The token [...] that the head finds likeliest after each state [..., hidden_size] of the last layer."""
        states = self.model.normed(residual.reshape(-1, residual.shape[-1])).split(MOST_LOGITS)
        return torch.cat([self.model.passing_logits(some).argmax(-1) for some in states]).view(residual.shape[:-1])

    def drawn(self, sequence: Sequence, ids: list[int], draft: DraftModel = FULL_MODEL) -> list[int]:
        """What a draft would have drawn after each token, at most `MOST_LOGITS`: as it samples, with its noise."""
        residual = self.model.sublayers(self.batch, self.cache, None, range(self.num_sublayers), draft)
        span = Span(ids[: sequence.cursor], [], len(self.token_ids), sequence.request.sampling, sequence.seed, None)
        return draw_tokens(self.model.passing_logits(self.model.normed(residual)), span.draws)
