"""Makes weights of few bits from numbers, with scales of least squared error."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from server.engine.model.quantization.codes import Codes, QuantizedWeight

Bits = Literal[4, 8]
GROUP = 32
CHUNK = 1 << 18
"""Weights rounded at a time: what the processor's cache holds."""
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Ranges that are tried, as shares of the group's own: a smaller one clips its ends and has finer steps."""
LARGEST = 65504.0
"""The largest float16."""


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A weight to be rounded to so many bits when it is asked for."""

    source: Tensor | QuantizedWeight
    bits: Bits

    @property
    def shape(self) -> torch.Size:
        return self.source.shape

    @property
    def kind(self) -> str:
        return f"int{self.bits}"

    def dense(self) -> Tensor:
        return self.codes().dense()

    def codes(self) -> Codes:
        return rounded(self.source if isinstance(self.source, Tensor) else self.source.dense(), self.bits)


def can_round(weight: Tensor | QuantizedWeight) -> bool:
    """Whether it is a matrix whose rows are whole groups."""
    return len(weight.shape) == 2 and weight.shape[1] % GROUP == 0


def rounded(weight: Tensor, bits: Bits) -> Codes:
    """Codes of a weight [out, in] with groups of 32 inputs.

    8 bits have a scale, the largest magnitude over 127. 4 bits have a scale and a minimum: for each of some ranges
    codes are chosen, then scale and minimum by linear regression on them; the best of these is kept.

    Scales and minima are float16, so that larger weights than 65504 with 4 bits, and than 8e6 with 8, are clipped to
    these, and a group of 8 bits with nothing over 3e-6 becomes zeros.
    """
    groups = weight.contiguous().view(-1, GROUP)
    parts = [rounded_groups(part.float(), bits) for part in groups.split(CHUNK // GROUP)]
    codes, scales, minima = (torch.cat(each).view(weight.shape[0], -1) for each in zip(*parts, strict=True))
    return Codes(8, GROUP, codes, scales, zero=128) if bits == 8 else Codes(4, GROUP, codes, scales, minima)


def rounded_groups(groups: Tensor, bits: Bits) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes [groups, 32], float16 scales and minima [groups]."""
    if bits == 8:
        scale = float16(groups.abs().amax(1, True) / 127)
        codes = (groups / nonzero(scale)).round_().clamp_(-127, 127).add_(128)
        return codes.to(torch.uint8), scale.half(), scale.half()
    groups = finite(groups)
    low, high = groups.aminmax(dim=1, keepdim=True)
    candidates = [fitted(groups, low * shrink, (high - low) * shrink / 15) for shrink in SHRINKS]
    errors = [(scale * codes + minimum - groups).square_().sum(1) for codes, scale, minimum in candidates]
    best = torch.stack(errors).argmin(0), torch.arange(len(groups))
    codes, scale, minimum = (torch.stack(each)[best] for each in zip(*candidates, strict=True))
    return codes.to(torch.uint8), scale.half(), minimum.half()


def fitted(groups: Tensor, minimum: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes by a first scale and minimum, then the scale and minimum that fit these codes best."""
    codes = ((groups - minimum) / nonzero(scale)).round_().clamp_(0, 15)
    mean, mean_code = groups.mean(1, True), codes.mean(1, True)
    spread = codes - mean_code
    slope = (spread * groups).sum(1, True) / nonzero(spread.square().sum(1, True))
    scale = float16(slope)
    return codes, scale, float16(mean - scale * mean_code)


def nonzero(values: Tensor) -> Tensor:
    """Zeros made ones: what is divided by them is zero too."""
    return torch.where(values == 0, 1, values)


def float16(values: Tensor) -> Tensor:
    return finite(values).half().float()


def finite(values: Tensor) -> Tensor:
    return values.clamp(-LARGEST, LARGEST)
