"""Accept or reject: pure functions over drafted tokens and the full model's own choices.

Losslessness in one line: what is emitted is always the full model's own choice, drafted tokens only
decide how many of those choices one pass yields. The vocabulary is defined in `types`.
"""

from collections.abc import Sequence


def count_accepted(drafted: Sequence[int], chosen: Sequence[int]) -> int:
    """Drafted tokens that equal the full model's choices, up to the first that does not."""
    for i, (draft, choice) in enumerate(zip(drafted, chosen, strict=False)):
        if draft != choice:
            return i
    return min(len(drafted), len(chosen))


def verify(drafted: Sequence[int], chosen: Sequence[int], stop_ids: frozenset[int], room: int) -> list[int]:
    """The tokens that a verification emits: accepted, then corrected or bonus, cut at a stop token and at `room`.

    `chosen` has one token more than `drafted`: the full model's choice after each of them.
    """
    emitted = list(chosen[: count_accepted(drafted, chosen) + 1])[:room]
    for i, token in enumerate(emitted):
        if token in stop_ids:
            return emitted[: i + 1]
    return emitted
