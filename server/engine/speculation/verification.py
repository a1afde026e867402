"""Accept or reject: pure functions over drafted tokens and the full model's own ones.

Losslessness in one line: what is emitted is always the full model's own token, drafted tokens only
decide how many of those one pass yields. Drafted 5 6 8 against the model's own 5 6 7 2: two tokens
are accepted, 7 corrects the third, and 5 6 7 is emitted. The vocabulary is defined in `types`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Verification:
    """What one check yields: the emitted tokens, and how many of the drafted ones counted and were accepted.

    A draft counts whole unless the sequence ended inside its accepted part: then it counts up to that end.
    """

    emitted: list[int]
    num_drafted: int
    num_accepted: int


def count_agreeing(drafted: Sequence[int], own: Sequence[int]) -> int:
    """Drafted tokens that equal the full model's own, up to the first that does not."""
    for i, (draft, token) in enumerate(zip(drafted, own, strict=False)):
        if draft != token:
            return i
    return min(len(drafted), len(own))


def verify(drafted: Sequence[int], own: Sequence[int], stop_ids: frozenset[int], room: int) -> Verification:
    """Accepted tokens, then a corrected or bonus one, cut at a stop token and at `room`.

    `own` has one token more than `drafted`: the full model's after each of them.
    """
    num_agreeing = count_agreeing(drafted, own)
    emitted = list(own[: num_agreeing + 1])[:room]
    end = next((i for i, token in enumerate(emitted) if token in stop_ids), len(emitted))
    emitted = emitted[: end + 1]
    num_accepted = min(num_agreeing, len(emitted))
    num_drafted = len(drafted) if len(emitted) > num_accepted else num_accepted
    return Verification(emitted, num_drafted, num_accepted)
