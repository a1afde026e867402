"""What one pass of the full model gives over drafted tokens."""

from typing import NamedTuple

from torch import Tensor

MOST_LOGITS = 64
"""Rows whose logits are held at once: each has the vocabulary's size, and a check may have hundreds of rows."""


class Checked(NamedTuple):
    """The model's own token after each of a batch's, or of some, and its states [tokens, hidden_size] and logits there.

    Both are in fp32, and the next check may write over them. Behind the logits of these tokens there may be older ones.
    """

    tokens: list[int]
    states: Tensor
    logits: Tensor
