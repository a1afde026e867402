"""How long a context may be where nobody says it, and no plan: as long as all slots fit a part of the memory."""

import torch

from server.engine.config import DecoderConfig
from server.engine.kvcache.cache import BLOCK_LENGTH
from server.engine.memory import available_memory

SHARE = 4
"""Keys and values of all slots take at most one part in so many of the memory."""
STEP = 1024
"""Chosen contexts are multiples of this, and never shorter."""


def fitting_length(config: DecoderConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a context, the model's own limit at most.

    SmolLM2-135M takes 25 KB a token: eight slots of 8,192 tokens are 1.7 GB, which fits from 7 GB of memory on.
    Llama-3.1-8B takes 144 KB: on 24 GB of memory its eight slots get 5,120 of its 131,072 tokens.
    """
    slots_bytes = num_slots * position_bytes(config, dtype)
    fitting = available_memory(device) // SHARE // slots_bytes // STEP * STEP
    return min(max(fitting, STEP), config.max_length)


def block_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    return BLOCK_LENGTH * position_bytes(config, dtype)


def position_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers, and of its state, which routing reads."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize + 4 * config.hidden_size
