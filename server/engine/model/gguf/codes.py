"""The codes and scales in the blocks of GGUF's quantised types, as `quantization.codes` has them.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. A block is 32 weights of one output with
float16 scales, or 256 weights, whose groups have scales in units of the block.
"""

from collections.abc import Callable

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray
from torch import Tensor

from server.engine.model.quantization.codes import Codes

UNEVEN = torch.tensor([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
"""The 16 values of IQ4, in steps that fit a normal distribution."""


def codes_of(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> Codes:
    """The codes of a matrix's `blocks` [out, bytes of a row]; `kind` is one of `READERS`."""
    return READERS[kind](torch.from_numpy(blocks).unflatten(1, (-1, GGML_QUANT_SIZES[kind][1])))


def split(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """The parts of each block, of these many bytes; the last one is the rest."""
    parts: tuple[Tensor, ...] = blocks.split([*sizes, blocks.shape[-1] - sum(sizes)], -1)
    return parts


def fields(packed: Tensor, run: int, bits: int) -> Tensor:
    """Numbers of so many bits: the lowest ones of `run` bytes, then the ones above, then those of the next bytes."""
    runs = packed.unflatten(-1, (-1, 1, run))
    return torch.cat([runs >> shift & (2**bits - 1) for shift in range(0, 8, bits)], -2).flatten(-3)


def nibbles(packed: Tensor, run: int) -> Tensor:
    return fields(packed, run, 4)


def rows(values: Tensor) -> Tensor:
    """All blocks of an output in one row."""
    return values.contiguous().flatten(1)


def halves(values: Tensor) -> Tensor:
    return rows(values).view(torch.float16)


def q4_0(blocks: Tensor) -> Codes:
    scale, low = split(blocks, 2)
    return Codes(4, 32, rows(nibbles(low, 16)), halves(scale), zero=8)


def q4_1(blocks: Tensor) -> Codes:
    scale, minimum, low = split(blocks, 2, 2)
    return Codes(4, 32, rows(nibbles(low, 16)), halves(scale), halves(minimum))


def with_fifth_bits(low: Tensor, high: Tensor) -> Tensor:
    return nibbles(low, 16) | fields(high, 1, 1) << 4


def q5_0(blocks: Tensor) -> Codes:
    scale, high, low = split(blocks, 2, 4)
    return Codes(5, 32, rows(with_fifth_bits(low, high)), halves(scale), zero=16)


def q5_1(blocks: Tensor) -> Codes:
    scale, minimum, high, low = split(blocks, 2, 2, 4)
    return Codes(5, 32, rows(with_fifth_bits(low, high)), halves(scale), halves(minimum))


def q8_0(blocks: Tensor) -> Codes:
    scale, codes = split(blocks, 2)
    return Codes(8, 32, rows(codes ^ 128), halves(scale), zero=128)


def iq4_nl(blocks: Tensor) -> Codes:
    scale, low = split(blocks, 2)
    return Codes(8, 32, rows(uneven(low)), halves(scale), zero=128)


def uneven(low: Tensor) -> Tensor:
    return (UNEVEN + 128).to(torch.uint8)[nibbles(low, 16).int()]


def iq4_xs(blocks: Tensor) -> Codes:
    unit, high, low_scales, low = split(blocks, 2, 2, 4)
    scales = fields(low_scales, 1, 4) | fields(high, 1, 2) << 4
    return Codes(8, 32, rows(uneven(low)), signed(scales, 32), zero=128, scale_units=halves(unit))


def signed(scales: Tensor, zero: int) -> Tensor:
    return rows(scales - zero).view(torch.int8)


def q2_k(blocks: Tensor) -> Codes:
    scales, packed, unit, minimum_unit = split(blocks, 16, 64, 2)
    minima = signed(scales >> 4, 0)
    units = halves(unit), -halves(minimum_unit)
    return Codes(4, 16, rows(fields(packed, 32, 2)), signed(scales & 15, 0), minima, 0, *units)


def q3_k(blocks: Tensor) -> Codes:
    high, packed, packed_scales, unit = split(blocks, 32, 64, 12)
    low_bits, high_bits = split(packed_scales, 8)
    scales = nibbles(low_bits, 8) | fields(high_bits, 4, 2) << 4
    codes = fields(packed, 32, 2) | fields(high, 32, 1) << 2
    return Codes(4, 16, rows(codes), signed(scales, 32), zero=4, scale_units=halves(unit))


def six_bits(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight minima in 12 bytes."""
    first, second, third = split(packed, 4, 4)
    scales = torch.cat((first & 63, third & 15 | first >> 6 << 4), -1)
    minima = torch.cat((second & 63, third >> 4 | second >> 6 << 4), -1)
    return signed(scales, 0), signed(minima, 0)


def q4_k(blocks: Tensor) -> Codes:
    unit, minimum_unit, scales, low = split(blocks, 2, 2, 12)
    return Codes(4, 32, rows(nibbles(low, 32)), *six_bits(scales), 0, halves(unit), -halves(minimum_unit))


def q5_k(blocks: Tensor) -> Codes:
    unit, minimum_unit, scales, high, low = split(blocks, 2, 2, 12, 32)
    codes = nibbles(low, 32) | fields(high, 32, 1) << 4
    return Codes(5, 32, rows(codes), *six_bits(scales), 0, halves(unit), -halves(minimum_unit))


def q6_k(blocks: Tensor) -> Codes:
    low, high, scales, unit = split(blocks, 128, 64, 16)
    codes = nibbles(low, 64) | fields(high, 32, 2) << 4
    return Codes(6, 16, rows(codes), signed(scales, 0), zero=32, scale_units=halves(unit))


READERS: dict[GGMLQuantizationType, Callable[[Tensor], Codes]] = {
    GGMLQuantizationType.Q4_0: q4_0,
    GGMLQuantizationType.Q4_1: q4_1,
    GGMLQuantizationType.Q5_0: q5_0,
    GGMLQuantizationType.Q5_1: q5_1,
    GGMLQuantizationType.Q8_0: q8_0,
    GGMLQuantizationType.Q2_K: q2_k,
    GGMLQuantizationType.Q3_K: q3_k,
    GGMLQuantizationType.Q4_K: q4_k,
    GGMLQuantizationType.Q5_K: q5_k,
    GGMLQuantizationType.Q6_K: q6_k,
    GGMLQuantizationType.IQ4_NL: iq4_nl,
    GGMLQuantizationType.IQ4_XS: iq4_xs,
}

MEMORY_BITS: dict[GGMLQuantizationType, float] = {
    GGMLQuantizationType.Q4_0: 4.5,
    GGMLQuantizationType.Q4_1: 5,
    GGMLQuantizationType.Q5_0: 5.5,
    GGMLQuantizationType.Q5_1: 6,
    GGMLQuantizationType.Q8_0: 8.5,
    GGMLQuantizationType.Q2_K: 5.125,
    GGMLQuantizationType.Q3_K: 4.5625,
    GGMLQuantizationType.Q4_K: 4.625,
    GGMLQuantizationType.Q5_K: 5.625,
    GGMLQuantizationType.Q6_K: 6.5625,
    GGMLQuantizationType.IQ4_NL: 8.5,
    GGMLQuantizationType.IQ4_XS: 8.3125,
}
"""Bits that a weight takes in the kernels' format of these codes, scales included."""
