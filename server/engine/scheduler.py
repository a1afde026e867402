"""Who takes part in a step: which waiting sequence gets a slot, which prompt is read on, who decodes.

It knows sequences, slots and lengths, and that a prompt may begin as another did; it knows nothing of drafts, tensors
or the model.
"""

import time
from collections import deque
from typing import NamedTuple

from server.engine.prefixes import Prefixes
from server.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The part of a prompt that a step reads: `ids`, of which the first stands at the sequence's cursor."""

    sequence: Sequence
    ids: list[int]


class StepPlan(NamedTuple):
    """A step reads at most one chunk of one prompt, and decodes every sequence whose prompt was read before."""

    prefill: Chunk | None
    decoding: list[Sequence]


class Scheduler:
    """First come, first served: a sequence waits for a free slot, and keeps it to its end.

    Prompts are read in chunks of at most `prefill_chunk` tokens, the oldest prompt first, so that a long one
    holds up those who decode for one chunk at a time.
    """

    def __init__(self, num_slots: int, prefill_chunk: int, prefixes: Prefixes) -> None:
        self.prefill_chunk = prefill_chunk
        self.prefixes = prefixes
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.free_slots = list(range(num_slots))
        """The one that was freed first is the first."""

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def plan(self) -> StepPlan:
        """Admits what fits, and says what the next step does."""
        self.admit()
        decoding = [sequence for sequence in self.running if sequence.is_prefilled]
        return StepPlan(self.next_chunk(), decoding)

    def admit(self) -> None:
        while self.waiting and self.free_slots:
            sequence = self.waiting.popleft()
            sequence.slot = self.prefixes.choose_slot(sequence, self.free_slots)
            self.free_slots.remove(sequence.slot)
            sequence.admitted_at = time.perf_counter()
            self.running.append(sequence)

    def next_chunk(self) -> Chunk | None:
        sequence = next((s for s in self.running if not s.is_prefilled), None)
        if sequence is None:
            return None
        if sequence.cursor == 0:
            self.prefixes.begin(sequence, self.running)
        return Chunk(sequence, sequence.ids[sequence.cursor : sequence.cursor + self.prefill_chunk])

    def release(self, sequence: Sequence) -> None:
        """Takes out a sequence that has ended; its slot is free for the next step."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.prefixes.keep(sequence)
            self.free_slots.append(sequence.slot)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
