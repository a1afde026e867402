"""Prefix reuse: a prompt that begins as a text that was read before is read from where the two part.

The eighth turn of a chat has seven turns and their answers before it. All of that was read or written in the turn
before, so what is left to read is the last question.
"""

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.kvcache.slots import KVCache, untouched_zeros
from server.engine.sequence import Sequence

SHORTEST = 16
"""Tokens from which on a common beginning is worth a copy."""
BLOCK = 64
"""Tokens that are compared at a time."""


@dataclass(frozen=True)
class Content:
    """What full passes have written to a slot, from its first position on, and whose it is."""

    owner: str | None
    ids: list[int]

    def num_common(self, sequence: Sequence) -> int:
        """Tokens of the sequence's prompt that need not be read; its last one always is, for what follows it."""
        if self.owner != sequence.request.owner:
            return 0
        same = num_equal(self.ids, sequence.request.prompt_ids[:-1])
        return same if same >= SHORTEST else 0


def num_equal(first: list[int], second: list[int]) -> int:
    """The length of their common beginning."""
    start = 0
    while start + BLOCK <= len(first) and first[start : start + BLOCK] == second[start : start + BLOCK]:
        start += BLOCK
    pairs = zip(first[start:], second[start:], strict=False)
    return next((i for i, (one, other) in enumerate(pairs, start) if one != other), min(len(first), len(second)))


class Prefixes:
    """What the slots hold. A slot keeps it after its sequence has ended, until another sequence takes it.

    Only sequences of one owner share: how soon a first token comes would tell others what was asked. A token has the
    same keys, values and state in any batch and by any method, so an answer is the same with and without this.
    """

    def __init__(self, cache: KVCache, hidden_size: int, is_on: bool) -> None:
        self.cache = cache
        self.is_on = is_on
        self.contents: dict[int, Content] = {}
        """By slot; of slots whose sequence has ended, or has not begun to read."""
        shape = (cache.num_slots, cache.max_length, hidden_size)
        self.states = untouched_zeros(shape, torch.float32, cache.keys.device)
        """The full model's states [slots, positions, hidden_size]; a prompt's mean routes it."""

    def choose_slot(self, sequence: Sequence, free: Items[int]) -> int:
        """The free slot that the sequence takes; the one that was freed first is the first of `free`.

        One that holds a beginning of its prompt needs no copy, but what else it holds is lost: so only where that is
        less than the half.
        """
        lengths = self.common_lengths(sequence, {slot: self.contents[slot] for slot in free if slot in self.contents})
        best = max(lengths, key=lambda slot: lengths[slot], default=free[0])
        if lengths.get(best, 0) > 0 and 2 * lengths[best] >= len(self.contents[best].ids):
            return best
        return next((slot for slot in free if slot not in self.contents), free[0])

    def begin(self, sequence: Sequence, running: Items[Sequence]) -> None:
        """Moves the cursor of a sequence that has read nothing over what some slot holds of its prompt."""
        slot, length = self.longest(sequence, running)
        if length and slot != sequence.slot:
            self.cache.copy(slot, sequence.slot, length)
            self.states[sequence.slot, :length] = self.states[slot, :length]
        self.contents.pop(sequence.slot, None)
        sequence.cursor = sequence.num_cached = length

    def num_known(self, sequence: Sequence, running: Items[Sequence]) -> int:
        """Tokens of a prompt that some slot holds."""
        return self.longest(sequence, running)[1]

    def is_being_read(self, sequence: Sequence, chosen: Collection[Sequence], running: Items[Sequence]) -> bool:
        """Whether one of those `chosen` to read will hold more of this prompt than any slot does."""
        prompts = {other.slot: Content(other.request.owner, other.request.prompt_ids) for other in chosen}
        to_come = max(self.common_lengths(sequence, prompts).values(), default=0)
        return to_come > self.num_known(sequence, running)

    def longest(self, sequence: Sequence, running: Items[Sequence]) -> tuple[int, int]:
        """The slot that holds the longest beginning of a prompt, and its length."""
        reading = [other for other in running if other.cursor > 0]
        read = {other.slot: Content(other.request.owner, other.ids[: other.cursor]) for other in reading}
        lengths = self.common_lengths(sequence, self.contents | read)
        best = max(lengths, key=lambda slot: lengths[slot], default=sequence.slot)
        return best, lengths.get(best, 0)

    def common_lengths(self, sequence: Sequence, contents: Mapping[int, Content]) -> dict[int, int]:
        """By slot, how much of the prompt it holds; a prompt whose tokens are scored is read whole."""
        if not self.is_on or sequence.request.scores_prompt:
            return {}
        return {slot: content.num_common(sequence) for slot, content in contents.items()}

    def write(self, slot: int, first: int, states: Tensor) -> None:
        """Keeps the states [tokens, hidden_size] of a full pass over positions from `first` on."""
        self.states[slot, first : first + len(states)] = states

    def prompt_states(self, sequence: Sequence) -> Tensor:
        return self.states[sequence.slot, : sequence.prompt_length]

    def keep(self, sequence: Sequence) -> None:
        """A sequence has ended: its slot keeps what was written."""
        if sequence.cursor > 0:
            self.contents[sequence.slot] = Content(sequence.request.owner, sequence.ids[: sequence.cursor])
