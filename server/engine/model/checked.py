"""What one pass of the full model gives over drafted tokens."""

from typing import NamedTuple

from torch import Tensor


class Checked(NamedTuple):
    """The model's own token after each of a batch's, and its states [tokens, hidden_size] and logits there, in fp32.

    The next check may write over them.
    """

    tokens: list[int]
    states: Tensor
    logits: Tensor
