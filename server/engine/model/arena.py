"""Places weights one after the other, in huge pages."""

import torch
from torch import Tensor

from server.engine.memory import reserve

CHUNK = 1 << 26
"""Bytes taken from the system at a time; it gives memory when it is written to."""
LINE = 64
"""Tensors begin at lines of the processor's cache."""


class Arena:
    """Places tensors one after the other; its memory lives as long as one of them."""

    def __init__(self) -> None:
        self.chunk = torch.empty(0, dtype=torch.uint8)
        self.used = 0

    def place(self, tensor: Tensor) -> Tensor:
        """A copy of the tensor."""
        if self.used + tensor.nbytes > self.chunk.nbytes:
            self.chunk, self.used = reserve(max(tensor.nbytes, CHUNK), is_huge=True), 0
        placed = self.chunk[self.used : self.used + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.used += -(-tensor.nbytes // LINE) * LINE
        return placed.copy_(tensor)
