"""The numbers that everything else is built from: the shape of a model, the sizes and defaults of an engine."""

from dataclasses import dataclass

from server.engine.types import MAX_DRAFT

LANES = 16
"""Outputs in one panel of weights, and positions in one panel of keys: what the kernels' vectors hold."""


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers of a Llama-shaped decoder; `max_length` is the longest context it may attend to."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocabulary_size: int
    max_length: int
    norm_epsilon: float

    @property
    def num_groups(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_heads // self.num_kv_heads

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The weights that every layer has."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        vocabulary = (self.vocabulary_size, self.hidden_size)
        layers = {
            f"model.layers.{i}.{name}.weight": shape
            for i in range(self.num_layers)
            for name, shape in self.layer_shapes.items()
        }
        edges = {"model.norm.weight": (self.hidden_size,), "model.embed_tokens.weight": vocabulary}
        return {**layers, **edges, "lm_head.weight": vocabulary}

    @property
    def optional_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights that a model may have beside them: a bias of any matrix, and norms of queries and keys."""
        matrices = {name: shape for name, shape in self.weight_shapes.items() if len(shape) == 2}
        biases = {name.removesuffix("weight") + "bias": shape[:1] for name, shape in matrices.items()}
        norms = [f"model.layers.{i}.self_attn.{part}_norm.weight" for i in range(self.num_layers) for part in "qk"]
        return {**biases, **dict.fromkeys(norms, (self.head_dim,))}


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and defaults; `max_draft` and `confidence` None take the artifact's calibrated values.

    Given, they go before those of all its domains. None, other drafts than the domains' take the mixed draft's.

    `max_length` None is the longest context that fits the memory, the model's own limit at most. All contexts together
    have at most `cache_tokens`; None is room for `max_batch` of the longest.

    `baseline_share` of the decode steps run plainly, so that the live speed-up compares
    measurements. `is_adaptive` lets measured gains and costs choose among a method's drafts.

    A step reads at most `prefill_chunk` tokens of prompts. While sequences decode, reading takes about `reading_share`
    of its time: with 0.6 a running answer goes on at 0.4 of its speed while others' prompts are read.

    A draft is a tree of about `max_tree` tokens at most where its drafter knows other continuations that are worth
    their rows. With 0 every draft is a chain.

    `history_bytes` bounds what is kept of answers, to draft from; with 0 nothing is learned from them.
    `reuses_prefixes` spares a prompt what it has in common with a text that the cache still holds.
    """

    max_batch: int = 8
    max_length: int | None = None
    cache_tokens: int | None = None
    prefill_chunk: int = 512
    reading_share: float = 0.6
    method: str = "cascade"
    max_draft: int | None = None
    confidence: float | None = None
    baseline_share: float = 1 / 64
    is_adaptive: bool = True
    max_tree: int = 0
    history_bytes: int = 64 << 20
    reuses_prefixes: bool = True

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.prefill_chunk < 1 or not 0 <= self.baseline_share <= 1:
            raise ValueError("max_batch and prefill_chunk are at least 1, baseline_share is between 0 and 1")
        if not 0 < self.reading_share < 1:
            raise ValueError("reading_share is between 0 and 1, and neither of them")
        if self.max_draft is not None and not 0 <= self.max_draft <= MAX_DRAFT:
            raise ValueError(f"max_draft is between 0 and {MAX_DRAFT}")
        if self.history_bytes < 0 or not 0 <= self.max_tree <= MAX_DRAFT:
            raise ValueError(f"history_bytes is at least 0, and max_tree between 0 and {MAX_DRAFT}")
