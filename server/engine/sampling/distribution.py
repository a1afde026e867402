"""Logits -> processed distribution -> token; greedy is the temperature-0 case.

The randomness of a token depends on the request's seed and the token's position alone, and draft
and full model share it (a Gumbel coupling, Daliri et al., arXiv 2408.07978). So the full model's
token is the same whatever was drafted: a seed gives one text with any mask, method or batch, it is
distributed exactly as in plain sampling, and a draft close to the full model still agrees often.
"""

from itertools import groupby

import torch
from torch import Tensor

from server.engine.sampling.draw import Draw
from server.engine.sampling.native_sampling import can_draw, draw_natively
from server.engine.sampling.noise import exponential_noise
from server.engine.types import SamplingParams


def probabilities(logits: Tensor, sampling: SamplingParams) -> Tensor:
    """The distribution [rows, vocabulary] after temperature, top-k, top-p and min-p, in that order."""
    # The maximum goes first: divided by a tiny temperature, logits overflow.
    p = torch.softmax((logits - logits.amax(-1, keepdim=True)) / sampling.temperature, -1)
    if 0 < sampling.top_k < p.shape[-1]:
        p = p.masked_fill(p < p.topk(sampling.top_k, -1).values[:, -1:], 0)
        p = p / p.sum(-1, keepdim=True)
    if sampling.top_p < 1:
        ordered, order = torch.sort(p, dim=-1, descending=True, stable=True)
        is_beyond = ordered.cumsum(-1) - ordered >= sampling.top_p
        is_beyond[:, 0] = False
        p = p.masked_fill(is_beyond.scatter(-1, order, is_beyond), 0)
    if sampling.min_p > 0:
        p = p.masked_fill(p < sampling.min_p * p.amax(-1, keepdim=True), 0)
    is_whole = sampling.top_p == 1 and sampling.min_p == 0
    return p if is_whole else p / p.sum(-1, keepdim=True)


def draw_tokens(logits: Tensor, draws: list[Draw]) -> list[int]:
    """One token for each row of `logits` [rows, vocabulary]."""
    if all(draw.sampling.is_greedy for draw in draws):
        tokens: list[int] = logits.argmax(-1).tolist()
        return tokens
    return draw_with_confidence(logits, draws)[0]


def draw_with_confidence(logits: Tensor, draws: list[Draw]) -> tuple[list[int], list[float]]:
    """One token for each row, and how sure the row is: its top probability at a temperature of 1, without cuts."""
    return draw_natively(logits, draws) if can_draw(logits) else draw_in_torch(logits, draws)


def draw_in_torch(logits: Tensor, draws: list[Draw]) -> tuple[list[int], list[float]]:
    """The same without the kernels."""
    tokens, tops = [], []
    first = 0
    for sampling, group in groupby(draws, key=lambda draw: draw.sampling):
        members = list(group)
        rows = logits[first : first + len(members)]
        first += len(members)
        # The likeliest is not the argmax of the softmax, whose rounding makes ties.
        token = rows.argmax(-1) if sampling.is_greedy else race(probabilities(rows, sampling), members)
        tokens += token.tolist()
        tops += torch.softmax(rows, -1).amax(-1).tolist()
    return tokens, tops


def race(p: Tensor, draws: list[Draw]) -> Tensor:
    """Tokens drawn: the exponential race argmax(p / noise), Gumbel-max in other words."""
    noise = [exponential_noise(draw.seed, draw.position, p.shape[-1], p.device) for draw in draws]
    return (p / torch.stack(noise)).argmax(-1)
