"""Tokens of rows of logits by the kernels: draws as `distribution.py` makes them in torch, and the likeliest."""

from array import array
from ctypes import Array, addressof

import torch
from torch import Tensor

from server.engine.model.kernels import Sampling, library
from server.engine.sampling.draw import Draw


def packed(draws: list[Draw]) -> "Array[Sampling] | None":
    """What the kernels take for each row; None where all are greedy."""
    if all(draw.sampling.is_greedy for draw in draws):
        return None
    return rows_of(draws)


def rows_of(draws: list[Draw]) -> "Array[Sampling]":
    rows = (Sampling * len(draws))()
    for row, (sampling, seed, position) in zip(rows, draws, strict=True):
        row.temperature, row.top_p, row.min_p = sampling.temperature, sampling.top_p, sampling.min_p
        row.top_k, row.seed, row.position = sampling.top_k, seed, position
    return rows


def can_draw(logits: Tensor) -> bool:
    """Whether the kernels draw from these."""
    return logits.device.type == "cpu" and logits.dtype == torch.float32 and library() is not None


def draw_natively(logits: Tensor, draws: list[Draw]) -> tuple[list[int], list[float]]:
    """As `draw_with_confidence`."""
    kernels, logits = library(), logits.contiguous()
    assert kernels is not None
    count, size = logits.shape
    tokens, tops, rows = array("i", bytes(4 * count)), array("f", bytes(4 * count)), rows_of(draws)
    addresses = tokens.buffer_info()[0], tops.buffer_info()[0]
    kernels.logits_sample(logits.data_ptr(), count, size, addressof(rows), *addresses)
    return tokens.tolist(), tops.tolist()


def likeliest(logits: Tensor, count: int) -> list[list[int]]:
    """The likeliest tokens of each row [rows, vocabulary], the likeliest first."""
    rows, size = logits.shape
    count = min(count, size)
    kernels = library() if can_draw(logits) else None
    if kernels is None:
        found: list[list[int]] = logits.topk(count, -1).indices.tolist()
        return found
    logits, tokens = logits.contiguous(), array("i", bytes(4 * rows * count))
    kernels.logits_likeliest(logits.data_ptr(), rows, size, count, tokens.buffer_info()[0])
    return [tokens[first : first + count].tolist() for first in range(0, rows * count, count)]
