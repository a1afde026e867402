"""Leaves out the attention that changes the prompt's states least."""

from dataclasses import replace
from typing import Self

import torch

from server.engine.masks.base import MaskParts, MaskSource, register
from server.engine.masks.rereading import Reader
from server.engine.sequence import Sequence
from server.engine.types import DraftModel, Route, SkipMask

WINDOW = 32
"""Last tokens of the prompt that are looked at."""
THRESHOLD = 0.98


@register
class CosineMask(MaskSource):
    """Skips each attention whose output points where its input did; Draft on the Fly, arXiv 2410.01028.

    That is a cosine of `THRESHOLD` and more, in the mean over the prompt's last tokens. Its two structural rules could
    not be had: here first and last layer stay. It costs one more pass over these tokens a request, and nothing between
    steps.
    """

    name = "cosine"
    summary = "without the attention that changes the prompt's states least"
    needs_artifact = False

    def __init__(self, parts: MaskParts) -> None:
        self.parts = parts

    @classmethod
    def of(cls, parts: MaskParts) -> Self:
        return cls(parts)

    def first_route(self, sequence: Sequence) -> Route:
        trace = Reader.of_last(self.parts.model, self.parts.cache, sequence, sequence.ids, WINDOW).trace.float()
        # In front of and behind attention: sub-layers 0, 2, 4, ...
        cosines = torch.cosine_similarity(trace[:-1:2], trace[1::2], dim=-1).mean(-1).tolist()
        inner = range(1, len(cosines) - 1)
        mask = SkipMask(attention=frozenset(layer for layer in inner if cosines[layer] >= THRESHOLD))
        return replace(self.parts.nearest(sequence), draft=DraftModel(mask))
