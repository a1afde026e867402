"""llama.cpp as a variant: the model's own file, its logits and steps through the library's C interface."""

import ctypes
from collections.abc import Callable, Iterator
from importlib.metadata import version

import llama_cpp
import numpy as np
import torch
from torch import Tensor

from offline.calibration.scoring.cost import CONTEXT
from offline.evaluation.peers.base import LLAMA_CPP
from offline.evaluation.peers.llamacpp import Model
from offline.fidelity.models import ROWS
from server.engine import Checkpoint


class LlamaCppVariant:
    """A GGUF file at its own bits, with as many threads; keys and values in fp16, or in fp32 as the other variants'."""

    name = LLAMA_CPP

    def __init__(self, checkpoint: Checkpoint, longest: int, keeps_fp32: bool) -> None:
        self.position = min(CONTEXT, checkpoint.config.max_length - 1)
        self.vocabulary_size = checkpoint.config.vocabulary_size
        dtype = torch.float32 if keeps_fp32 else torch.float16
        cache = str(dtype).removeprefix("torch.")
        self.precision = f"llama-cpp-python {version('llama-cpp-python')}, the file's own weights, {cache} cache"
        self.peer = Model(checkpoint.path, max(longest, self.position + 1), dtype)

    @property
    def weight_bits(self) -> float:
        return 8 * self.num_bytes / int(llama_cpp.llama_model_n_params(self.peer.model))

    @property
    def num_bytes(self) -> int:
        return int(llama_cpp.llama_model_size(self.peer.model))

    def logits(self, ids: list[int]) -> Iterator[Tensor]:
        """As of every variant; a piece is a copy, since the library writes the next one over it."""
        self.forget(0)
        for start in range(0, len(ids), ROWS):
            piece = ids[start : start + ROWS]
            self.decode(piece)
            shape = len(piece), self.vocabulary_size
            rows = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self.peer.context), shape)
            yield torch.from_numpy(rows.copy())

    def decode_step(self) -> Callable[[], object]:
        self.forget(0)
        self.decode([1] * self.position)

        def step() -> None:
            self.forget(self.position)
            self.decode([1])
            llama_cpp.llama_sampler_sample(self.peer.greedy, self.peer.context, -1)

        return step

    def forget(self, position: int) -> None:
        """Drops keys and values from this position on."""
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self.peer.context), 0, position, -1)

    def decode(self, ids: list[int]) -> None:
        """Reads tokens after those before, with logits after each."""
        # Both arrays have to outlive the call: a batch points to them.
        tokens, flags = (ctypes.c_int32 * len(ids))(*ids), (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        batch = llama_cpp.llama_batch_get_one(tokens, len(ids))
        batch.logits = flags
        if llama_cpp.llama_decode(self.peer.context, batch):
            raise RuntimeError("llama_decode failed")
