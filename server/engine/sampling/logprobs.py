"""Log-probabilities of tokens as the model itself gives them: before adjustments and temperature."""

import torch
from torch import Tensor

from server.engine.model.checked import MOST_LOGITS
from server.engine.model.decoder import Decoder
from server.engine.types import TokenLogprobs


def score(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprobs]:
    """Each token under its row of raw logits [rows, vocabulary], with the `num_top` most likely ones."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(min(num_top, logits.shape[-1]), -1)
    top = [tuple(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]
    return [TokenLogprobs(*entry) for entry in zip(token_ids, chosen, top, strict=True)]


def score_prompt(model: Decoder, hidden: Tensor, ids: list[int], first: int, num_top: int) -> list[TokenLogprobs]:
    """The prompt's tokens that follow the rows of `hidden` [rows, hidden_size]; row 0 is that of `ids[first]`.

    With the first rows comes the first token, before which there is nothing to score it by.
    """
    scores = [] if first else [TokenLogprobs(ids[0], None)]
    following = ids[first + 1 : first + 1 + len(hidden)]
    for start in range(0, len(following), MOST_LOGITS):
        scored = following[start : start + MOST_LOGITS]
        scores += score(model.passing_logits(hidden[start : start + len(scored)]), scored, num_top)
    return scores
