"""What decides one token beside its logits."""

from typing import NamedTuple

from server.engine.types import SamplingParams


class Draw(NamedTuple):
    """`position` is the place that the token will take; seeds have 64 bits."""

    sampling: SamplingParams
    seed: int
    position: int
