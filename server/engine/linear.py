"""One matrix product: prepacked by oneDNN where that works, `F.linear` elsewhere.

`F.linear` repacks the weight at every call on a CPU; packed once, a product of 16 rows costs
about as much as one of a single row, which is what makes verification cheap.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """x [tokens, in] -> [tokens, out] for a weight [out, in] and an optional bias [out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.out_features = weight.shape[0]
        self.packed = pack(weight)
        self.weight = None if self.packed is not None else weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed is None:
            assert self.weight is not None
            return F.linear(x, self.weight, self.bias)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


def pack(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's own layout, or None where these private operators are absent or differ."""
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        probe = torch.ones(2, weight.shape[1], dtype=weight.dtype)
        result = torch.ops.mkldnn._linear_pointwise(probe, packed, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    return packed if torch.allclose(result, F.linear(probe, weight), rtol=2e-2, atol=2e-2) else None
