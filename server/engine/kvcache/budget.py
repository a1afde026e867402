"""How long a context may be where nobody says it: as long as all slots' keys and values fit the memory there is."""

import os
from pathlib import Path

import torch

from server.engine.config import DecoderConfig

SHARE = 4
"""Keys and values of all slots take at most one part in so many of the memory."""
STEP = 1024
"""Chosen contexts are multiples of this, and never shorter."""
CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")


def fitting_length(config: DecoderConfig, num_slots: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a context, the model's own limit at most.

    SmolLM2-135M takes 25 KB a token: eight slots of 8,192 tokens are 1.7 GB, which fits from 7 GB of memory on.
    Llama-3.1-8B takes 144 KB: on 24 GB of memory its eight slots get 5,120 of its 131,072 tokens.
    """
    slots_bytes = num_slots * position_bytes(config, dtype)
    fitting = memory_bytes(device) // SHARE // slots_bytes // STEP * STEP
    return min(max(fitting, STEP), config.max_length)


def position_bytes(config: DecoderConfig, dtype: torch.dtype) -> int:
    """Bytes of the keys and values of one token in all layers, and of its state, which routing reads."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * dtype.itemsize + 4 * config.hidden_size


def memory_bytes(device: torch.device) -> int:
    """The device's memory; on a CPU what the control group allows, where that is less than the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(machine, int(CONTROL_GROUP.read_text()))
    except (OSError, ValueError):
        # No control group, or one without a limit, which reads "max".
        return machine
