"""Weights of few bits: whole numbers, the codes, and a scale for each group of inputs of each output.

The kernels' four formats hold every type of GGUF file that llama.cpp makes without help of a text, exactly.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

UNIT = 256
"""Inputs that share a unit, where scales are whole numbers of one; llama.cpp's super-block."""


@dataclass(frozen=True)
class Codes:
    """A weight [out, in] as scale * code + minimum.

    `codes` [out, in] are uint8, of which `bits` are used. `scales` and `minima` [out, in / group] are float16, or int8
    that count in `scale_units` and `minimum_units` [out, in / 256], float16. Without minima, `zero` is the code of a
    zero, and the minimum -zero * scale.
    """

    bits: int
    group: int
    codes: Tensor
    scales: Tensor
    minima: Tensor | None = None
    zero: int = 0
    scale_units: Tensor | None = None
    minimum_units: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        return self.codes.shape

    def dense(self) -> Tensor:
        """The weight [out, in] in fp32."""
        scales = in_units(self.scales, self.scale_units, self.group)
        minima = scales * -self.zero if self.minima is None else in_units(self.minima, self.minimum_units, self.group)
        grouped = self.codes.view(*scales.shape, self.group)
        return (scales[..., None] * grouped + minima[..., None]).view(self.shape)


def in_units(values: Tensor, units: Tensor | None, group: int) -> Tensor:
    return values.float() if units is None else values * units.float().repeat_interleave(UNIT // group, 1)


class QuantizedWeight(Protocol):
    """A weight of a checkpoint that is made of few bits, or to be."""

    @property
    def shape(self) -> torch.Size: ...

    @property
    def kind(self) -> str:
        """Its type's name, as `Q4_1` or `int8`."""
        ...

    def dense(self) -> Tensor:
        """The weight [out, in] in fp32."""
        ...

    def codes(self) -> Codes:
        """The same weight; made anew at each call."""
        ...
