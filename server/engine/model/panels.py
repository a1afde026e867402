"""Weights in the order in which the CPU kernels read them: panels of 16 outputs.

Numbers are [out / 16, in, 16]; in bf16 two inputs share 32-bit lanes, [out / 16, in / 2, 16, 2]. Codes of few bits are
[out / 16, in / 32, bytes], a block of 32 inputs after the other, as `native/codes.hpp` describes it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import LANES
from server.engine.model.arena import Arena
from server.engine.model.quantization.codes import Codes

BLOCK = 32
"""Inputs whose codes lie together."""


@dataclass(frozen=True)
class Panels:
    """A weight [outputs, inputs] and its bias in panels.

    `weights` are of 32 or 16 bits, or codes with scales; `Codes` says what their fields mean. `bias` is padded.
    """

    outputs: int
    inputs: int
    bits: int
    weights: Tensor
    bias: Tensor | None = None
    group: int = 0
    zero: int = 0
    scales: Tensor | None = None
    minima: Tensor | None = None
    scale_units: Tensor | None = None
    minimum_units: Tensor | None = None

    def placed(self, arena: Arena) -> "Panels":
        """The same panels in an arena's memory."""
        placed: dict[str, Any] = {name: arena.place(tensor) for name, tensor in self.tensors.items()}
        return replace(self, **placed)

    def blank(self, outputs: int) -> "Panels":
        """Panels of the same kind for so many outputs, all of their bits zero."""
        own, padded = (count + -count % LANES for count in (self.outputs, outputs))
        blank: dict[str, Any] = {
            name: tensor.new_zeros(tensor.shape[0] * padded // own, *tensor.shape[1:])
            for name, tensor in self.tensors.items()
        }
        return replace(self, outputs=outputs, **blank)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def pack(weight: Tensor | Codes, bias: Tensor | None = None) -> Panels:
    """Panels of a weight; outputs are padded with zeros to whole panels."""
    outputs, inputs = weight.shape
    padded_bias = None if bias is None else F.pad(bias.float(), (0, -outputs % LANES)).contiguous()
    if isinstance(weight, Tensor):
        return Panels(outputs, inputs, 8 * weight.element_size(), dense_panels(weight), padded_bias)
    return Panels(
        outputs,
        inputs,
        weight.bits,
        code_panels(weight),
        padded_bias,
        weight.group,
        weight.zero,
        by_lane(weight.scales),
        by_lane(weight.minima),
        by_lane(weight.scale_units),
        by_lane(weight.minimum_units),
    )


def dense_panels(weight: Tensor) -> Tensor:
    panels = in_panels(weight)
    if weight.dtype == torch.bfloat16:
        panels = panels.view(*panels.shape[:2], -1, 2)
    return panels.transpose(1, 2).contiguous()


def by_lane(values: Tensor | None) -> Tensor | None:
    """[out, groups] -> [out / 16, groups, 16]."""
    return None if values is None else in_panels(values).transpose(1, 2).contiguous()


def in_panels(values: Tensor) -> Tensor:
    """[out, n] -> [out / 16, 16, n], padded with zeros."""
    padded: Tensor = F.pad(values, (0, 0, 0, -values.shape[0] % LANES))
    return padded.view(-1, LANES, values.shape[1])


def code_panels(weight: Codes) -> Tensor:
    """[out / 16, in / 32, bytes]: of each block low halves of quads in pairs, then planes of the bits above."""
    lanes = in_panels(weight.codes).view(torch.int32)
    quads = lanes.transpose(1, 2).contiguous().view(torch.uint8).view(lanes.shape[0], -1, BLOCK // 4, 4 * LANES)
    if weight.bits == 8:
        return quads.flatten(2)
    low = quads & 15
    parts = [(low[:, :, : BLOCK // 8] | low[:, :, BLOCK // 8 :] << 4).flatten(2)]
    parts += [bit_plane(quads, bit) for bit in range(4, weight.bits)]
    return torch.cat(parts, 2)


def bit_plane(quads: Tensor, bit: int) -> Tensor:
    """One bit of each byte: the first byte's is the lowest of eight."""
    bits = (quads >> bit & 1).view(*quads.shape[:2], -1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
