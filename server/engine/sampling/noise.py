"""The noise of a token: Exponential(1), from the request's seed, the place in its text and the token's number.

It comes from a counter (Philox4x32-10, Salmon et al., SC 2011), so it can be made for any token at any time and on any
device. `native/sampling.hpp` of the kernels has the same definition.
"""

import torch
from torch import Tensor

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
STEPS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
COUNTERS, BLOCK = 16, 64
"""Token 64 b + 16 w + l has number w of counter 16 b + l: so the kernels need not turn their vectors."""
WORD = 0xFFFFFFFF


def exponential_noise(seed: int, position: int, size: int, device: torch.device) -> Tensor:
    """The noise [size] of all tokens in fp64; what is small, and wins, is the finest."""
    counters = torch.arange(-(-size // BLOCK) * COUNTERS, device=device).view(-1, COUNTERS)
    bits = philox(seed, position, counters).transpose(1, 2).flatten()[:size]
    return -torch.log1p(-(bits.double() + 0.5) / 2**32)


def philox(seed: int, position: int, counters: Tensor) -> Tensor:
    """Four numbers of 32 random bits for each counter [..., 4], in int64."""
    a, b = counters, torch.zeros_like(counters)
    c, d = (torch.full_like(counters, word) for word in (position & WORD, position >> 32 & WORD))
    keys = [seed & WORD, seed >> 32 & WORD]
    for _ in range(ROUNDS):
        (left, left_low), (right, right_low) = (
            product(x, multiplier) for x, multiplier in zip((a, c), MULTIPLIERS, strict=True)
        )
        a, b, c, d = right ^ b ^ keys[0], right_low, left ^ d ^ keys[1], left_low
        keys = [(key + step) & WORD for key, step in zip(keys, STEPS, strict=True)]
    return torch.stack((a, b, c, d), -1)


def product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 32 bits of products, which would not fit the positive half of 64 bits whole."""
    low, high = x * (multiplier & 0xFFFF), x * (multiplier >> 16)
    middle = high + (low >> 16)
    return middle >> 16, (middle << 16 | low & 0xFFFF) & WORD
