"""One matrix product, and the panel layout in which the CPU kernels read its weight.

Panels hold 16 outputs for each input, [out / 16, in, 16]; in bf16 two inputs share 32-bit lanes,
[out / 16, in / 2, 16, 2]. A packed weight is kept once: torch's products unpack it when they need it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LANES = 16


class Linear:
    """x [tokens, in] -> [tokens, out] for a weight [out, in] and an optional bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None, is_packed: bool) -> None:
        self.out_features = weight.shape[0]
        self.bias = bias
        self.is_packed = is_packed
        self.stored = pack(weight) if is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = F.linear(x.to(self.stored.dtype), self.weight, self.bias)
        return product

    @property
    def weight(self) -> Tensor:
        return unpack(self.stored, self.out_features) if self.is_packed else self.stored

    @property
    def padded_bias(self) -> Tensor | None:
        """The bias in fp32, padded to whole panels."""
        if self.bias is None:
            return None
        padded: Tensor = F.pad(self.bias.float(), (0, -self.out_features % LANES))
        return padded.contiguous()


def pack(weight: Tensor) -> Tensor:
    """Panels of a weight [out, in]; outputs are padded with zeros to whole panels."""
    padded: Tensor = F.pad(weight, (0, 0, 0, -weight.shape[0] % LANES))
    panels = padded.view(-1, LANES, weight.shape[1])
    if weight.dtype == torch.bfloat16:
        panels = panels.view(*panels.shape[:2], -1, 2)
    return panels.transpose(1, 2).contiguous()


def unpack(panels: Tensor, out_features: int) -> Tensor:
    """The weight [out, in] of `pack`'s result."""
    rows = panels.transpose(1, 2).flatten(2) if panels.ndim == 4 else panels.transpose(1, 2)
    return rows.reshape(-1, rows.shape[-1])[:out_features]
