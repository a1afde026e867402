"""Bytes that a model takes, worked out from its shape and bits before any weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from server.engine.config import DecoderConfig
from server.engine.model import kernels
from server.engine.model.placement import ROUNDED_BITS, DraftWeights
from server.engine.model.quantization.rounding import GROUP, Bits

ROUNDED: dict[Bits, float] = {4: 5.0, 8: 8.5}
"""Bits a weight of matrices that are rounded, scales included."""
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
PACKING = 4
"""Bytes a weight that packing the largest matrix takes for a while."""


@dataclass(frozen=True)
class Outline:
    """What is known of a model before its weights are read.

    `few_bits` has the bits in memory, scales included, of the matrices that stay at a file's; all others are rounded to
    `rounded` bits where they can be, or have those of `dtype`. `is_converted` says that reading them makes numbers of
    another type than the file's, which are in memory until they are packed; others are read out of the file.
    """

    config: DecoderConfig
    dtype: torch.dtype
    device: torch.device
    is_tied: bool
    is_converted: bool
    few_bits: Mapping[str, float] = field(default_factory=dict)
    rounded: Bits | None = None

    @property
    def has_kernels(self) -> bool:
        return kernels.is_supported(self.config, self.dtype, self.device)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all weights that are kept; torch has a tied head apart from the embeddings."""
        is_shared = self.is_tied and self.has_kernels
        return {name: shape for name, shape in self.config.weight_shapes.items() if not (is_shared and name == HEAD)}

    @property
    def num_weights(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def weight_bytes(self) -> int:
        return sum(round(prod(shape) * self.bits(name, shape) / 8) for name, shape in self.shapes.items())

    def bits(self, name: str, shape: tuple[int, ...]) -> float:
        if self.has_kernels and self.rounded and can_round(shape):
            return ROUNDED[self.rounded]
        if self.has_kernels and name in self.few_bits:
            return self.few_bits[name]
        return 8 * self.dtype.itemsize

    @property
    def average_bits(self) -> float:
        return 8 * self.weight_bytes / self.num_weights

    def copy_bytes(self, choice: DraftWeights) -> int:
        """Of a copy in fewer bits to draft with, whose embeddings are the model's; `auto` may make one of 4 bits."""
        if choice == "none" or not self.has_kernels or (choice == "auto" and self.average_bits < 2 * 4):
            return 0
        shapes = [shape for name, shape in self.config.weight_shapes.items() if name != EMBEDDINGS and can_round(shape)]
        return round(sum(map(prod, shapes)) * ROUNDED[ROUNDED_BITS["int4" if choice == "auto" else choice]] / 8)

    @property
    def loading_bytes(self) -> int:
        """What loading takes for a while beside the weights: numbers as they were read, and one matrix's packing."""
        read = self.num_weights * self.dtype.itemsize if self.is_converted and self.device.type == "cpu" else 0
        return read + PACKING * max(map(prod, self.shapes.values()))


def can_round(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and shape[1] % GROUP == 0
