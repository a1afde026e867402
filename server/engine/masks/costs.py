"""What a draft's pass costs beside one of the full model, by the bytes that it reads; and what a draft is worth."""

from dataclasses import dataclass

from server.engine.config import DecoderConfig
from server.engine.model.decoder import Decoder
from server.engine.types import SkipMask


@dataclass(frozen=True)
class PassCosts:
    """Bytes that a pass of one token reads in each attention and MLP sub-layer, and in the head."""

    attention: float
    mlp: float
    head: float
    num_layers: int

    @classmethod
    def of(cls, model: Decoder, length: int) -> "PassCosts":
        """After a text of `length` tokens, whose keys and values every attention reads."""
        config, cache_bytes = model.config, model.dtype.itemsize
        weight_bytes = model.native.weight_bits / 8 if model.native else cache_bytes
        cached = 2 * length * config.num_kv_heads * config.head_dim * cache_bytes
        attention, mlp = sublayer_sizes(config)
        head = config.vocabulary_size * config.hidden_size
        return cls(attention * weight_bytes + cached, mlp * weight_bytes, head * weight_bytes, config.num_layers)

    @property
    def whole(self) -> float:
        return self.num_layers * (self.attention + self.mlp) + self.head

    def share(self, mask: SkipMask) -> float:
        """Of a pass that leaves out these sub-layers, 1 for none."""
        return 1 - (len(mask.attention) * self.attention + len(mask.mlp) * self.mlp) / self.whole


def sublayer_sizes(config: DecoderConfig) -> tuple[int, int]:
    """Weights of an attention and of an MLP sub-layer."""
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return 2 * config.hidden_size * (queries + keys), 3 * config.hidden_size * config.intermediate_size


def best_length(acceptance: float, cost: float, longest: int) -> tuple[float, int]:
    """(tokens in the time of a full pass, length) of the best drafts; (1, 0) where none pays.

    Drafts of d tokens, each right with chance a where those before it are, of passes that cost c:
    (1 - a^(d+1)) / (1 - a) / (c d + 1), DEL (arXiv 2504.05598, section 3) and KnapSpec (arXiv 2602.20217, equation 2).
    """
    yields = [1.0]
    for length in range(1, longest + 1):
        yields.append(yields[-1] + acceptance**length)
    rates = [tokens / (cost * length + 1) for length, tokens in enumerate(yields)]
    best = max(range(len(rates)), key=rates.__getitem__)
    return rates[best], best
