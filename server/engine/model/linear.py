"""One matrix product, and the panel layout in which the CPU kernels read its weight.

Panels hold 16 outputs for each input, [out / 16, in, 16]; in bf16 two inputs share 32-bit lanes,
[out / 16, in / 2, 16, 2].
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import LANES


class Linear:
    """x [tokens, in] -> [tokens, out] for a weight [out, in] and an optional bias [out].

    A packed one only keeps the weight for the kernels and cannot be called.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, is_packed: bool) -> None:
        self.bias = bias
        self.weight = pack(weight) if is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = F.linear(x, self.weight, self.bias)
        return product

    @property
    def padded_bias(self) -> Tensor | None:
        """The bias in fp32, padded to whole panels."""
        if self.bias is None:
            return None
        padded: Tensor = F.pad(self.bias.float(), (0, -self.bias.shape[0] % LANES))
        return padded.contiguous()


def pack(weight: Tensor) -> Tensor:
    """Panels of a weight [out, in]; outputs are padded with zeros to whole panels."""
    padded: Tensor = F.pad(weight, (0, 0, 0, -weight.shape[0] % LANES))
    panels = padded.view(-1, LANES, weight.shape[1])
    if weight.dtype == torch.bfloat16:
        panels = panels.view(*panels.shape[:2], -1, 2)
    return panels.transpose(1, 2).contiguous()
