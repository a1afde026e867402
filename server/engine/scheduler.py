"""Who takes part in a step: which waiting sequence gets a slot, which prompts are read on, who decodes.

It knows sequences, slots and lengths, and that a prompt may begin as another did; it knows nothing of drafts, tensors
or the model.
"""

import time
from collections import Counter, deque
from collections.abc import Collection
from typing import NamedTuple

from server.engine.pace import Pace
from server.engine.prefixes import Prefixes
from server.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The part of a prompt that a step reads: `ids`, of which the first stands at the sequence's cursor."""

    sequence: Sequence
    ids: list[int]


class StepPlan(NamedTuple):
    """A step decodes every sequence whose prompt was read before, and reads chunks of the other prompts."""

    decoding: list[Sequence]
    chunks: list[Chunk]
    num_reading: int
    """Prompts that are not read yet, those without a chunk in this step too."""

    @property
    def crowd(self) -> float:
        """Prompts for each running answer."""
        return self.num_reading / max(len(self.decoding), 1)


class Scheduler:
    """Shares out slots among clients, and the tokens that a step reads among prompts.

    A free slot goes to the client that has the fewest sequences running; of equal ones, to the one whose last turn is
    longest ago. So one with a thousand waiting sequences does not stop another's first. A client's own come in order,
    and a sequence keeps its slot to its end.

    Of the tokens that a step reads, half are the oldest prompt's, so that each is read in at most twice the time that
    it would take alone. The rest go to the prompts of which least is left, so that a question of 30 tokens does not
    wait for a document of 6,000.
    """

    def __init__(self, num_slots: int, pace: Pace, prefixes: Prefixes) -> None:
        self.pace = pace
        self.prefixes = prefixes
        self.waiting: dict[str | None, deque[Sequence]] = {}
        """By client; the first one's last turn is longest ago."""
        self.running: list[Sequence] = []
        """The oldest is the first."""
        self.free_slots = list(range(num_slots))
        """The one that was freed first is the first."""

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self.waiting.values()))

    @property
    def num_held(self) -> int:
        """Tokens that slots hold, those of ended sequences as well."""
        kept = sum(len(content.ids) for content in list(self.prefixes.contents.values()))
        return kept + sum(sequence.cursor for sequence in list(self.running))

    def add(self, sequence: Sequence) -> None:
        self.waiting.setdefault(sequence.request.client, deque()).append(sequence)

    def plan(self) -> StepPlan:
        """Admits what fits, and says what the next step does."""
        self.admit()
        decoding = [sequence for sequence in self.running if sequence.is_prefilled]
        chunks = self.chunks(self.pace.budget(bool(decoding)))
        return StepPlan(decoding, chunks, len(self.running) - len(decoding))

    def admit(self) -> None:
        while self.waiting and self.free_slots:
            sequence = self.next_waiting()
            sequence.slot = self.prefixes.choose_slot(sequence, self.free_slots)
            self.free_slots.remove(sequence.slot)
            sequence.admitted_at = time.perf_counter()
            self.running.append(sequence)

    def next_waiting(self) -> Sequence:
        """Takes out the one whose turn it is; its client's next turn comes after all others'."""
        num_running = Counter(sequence.request.client for sequence in self.running)
        client = min(self.waiting, key=lambda client: num_running[client])
        queue = self.waiting.pop(client)
        sequence = queue.popleft()
        if queue:
            self.waiting[client] = queue
        return sequence

    def chunks(self, budget: int) -> list[Chunk]:
        """Shares out so many tokens: half to the oldest prompt, the rest to those of which least is left."""
        reading = [sequence for sequence in self.running if not sequence.is_prefilled]
        shares: Counter[Sequence] = Counter()
        turns = [(sequence, -(-budget // 2)) for sequence in reading[:1]]
        turns += [(sequence, budget) for sequence in sorted(reading, key=self.num_left)]
        for sequence, most in turns:
            room = min(most, budget - shares.total())
            if room > 0 and self.may_read(sequence, shares):
                shares[sequence] += min(room, sequence.prompt_length - sequence.cursor - shares[sequence])
        return [Chunk(s, s.ids[s.cursor : s.cursor + count]) for s, count in shares.items() if count]

    def num_left(self, sequence: Sequence) -> int:
        """Tokens of its prompt that are to be read."""
        known = sequence.cursor or self.prefixes.num_known(sequence, self.running)
        return sequence.prompt_length - known

    def may_read(self, sequence: Sequence, chosen: Collection[Sequence]) -> bool:
        """Whether it reads in this step; one that has read nothing first takes over what was read of its prompt.

        It waits where one of those `chosen` is just reading what it could take over in a later step.
        """
        if sequence.cursor or sequence in chosen:
            return True
        if self.prefixes.is_being_read(sequence, chosen, self.running):
            return False
        self.prefixes.begin(sequence, self.running)
        return True

    def release(self, sequence: Sequence) -> None:
        """Takes out a sequence that has ended; its slot is free for the next step."""
        if sequence in self.running:
            self.running.remove(sequence)
            self.prefixes.keep(sequence)
            self.free_slots.append(sequence.slot)
            return
        queue = self.waiting.get(sequence.request.client, deque())
        if sequence in queue:
            queue.remove(sequence)
        if not queue:
            self.waiting.pop(sequence.request.client, None)
