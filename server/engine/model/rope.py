"""Rotary position embeddings as transformers defines them; every call into its internals is here."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

STATIC_ROPE = ("default", "linear", "llama3", "yarn")
"""RoPE types whose frequencies do not depend on the length; others equal plain RoPE up to their original length."""


def longest_context(config: PreTrainedConfig) -> int:
    """The context within which full attention and fixed RoPE frequencies are the model's own."""
    limit = int(config.max_position_embeddings)
    if getattr(config, "sliding_window", None):
        limit = min(limit, int(config.sliding_window))
    if config.rope_parameters["rope_type"] not in STATIC_ROPE:
        limit = min(limit, int(config.rope_parameters.get("original_max_position_embeddings") or limit))
    return limit


def rope_tables(config: PreTrainedConfig, length: int, divisors: Tensor | None) -> Tensor:
    """cos and signed sin [2, length, head_dim]; rotating is then x * cos + swapped_halves(x) * sin."""
    frequencies, scale = rope_frequencies(config)
    if divisors is not None:
        frequencies = frequencies / divisors
    angles = torch.arange(length)[:, None].float() * frequencies
    cos, sin = angles.cos() * scale, angles.sin() * scale
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)))


def rope_frequencies(config: PreTrainedConfig) -> tuple[Tensor, float]:
    """Frequencies [head_dim / 2], and what cos and sin are multiplied with.

    As `LlamaRotaryEmbedding` has them, whose module takes 1.6 s to import.
    """
    rope = config.rope_parameters
    if rope["rope_type"] != "default":
        frequencies, scale = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config)
        return frequencies, float(scale)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 1.0 / (rope["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)), 1.0
