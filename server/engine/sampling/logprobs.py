"""Log-probabilities of tokens as the model itself gives them: before adjustments and temperature."""

import torch
from torch import Tensor

from server.engine.model.decoder import Decoder
from server.engine.sequence import Sequence
from server.engine.types import TokenLogprobs

SCORED_ROWS = 64
"""Prompt tokens whose logits are held at once: each takes a row of the vocabulary's size."""


def score(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
    """Each token under its row of raw logits [rows, vocabulary], with the `num_top` most likely ones."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(num_top, logits.shape[-1]), -1)
    top = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprobs(*entry) for entry in zip(token_ids, chosen, top, strict=True)]


def score_prompt(model: Decoder, hidden: Tensor, sequence: Sequence) -> list[TokenLogprobs]:
    """The prompt's tokens that follow the rows of `hidden` [rows, hidden_size], which start at the cursor.

    With the first rows comes the first token, before which there is nothing to score it by.
    """
    scores = [] if sequence.cursor else [TokenLogprobs(sequence.ids[0], None)]
    following = sequence.ids[sequence.cursor + 1 : sequence.cursor + 1 + len(hidden)]
    for first in range(0, len(following), SCORED_ROWS):
        ids = following[first : first + SCORED_ROWS]
        logits = model.logits(hidden[first : first + len(ids)])
        scores += score(logits, ids, sequence.request.num_logprobs or 0)
    return scores
