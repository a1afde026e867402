"""Who takes part in a step: which waiting sequence gets a slot, which prompts are read on, who decodes.

It knows sequences, slots, blocks and lengths, and that a prompt may begin as another did; it knows nothing of drafts,
tensors or the model.
"""

import time
from collections import Counter, deque
from collections.abc import Collection
from typing import NamedTuple

from server.engine.kvcache.cache import blocks_of
from server.engine.kvcache.tables import BlockTables
from server.engine.pace import Pace
from server.engine.prefixes import Prefixes
from server.engine.sequence import Sequence


class Chunk(NamedTuple):
    """The part of a text that a step reads: `ids`, of which the first stands at the sequence's cursor."""

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

    A sequence begins when there are blocks for its prompt. Where later there are none for an answer to go on, the
    sequence that began last gives its own back and waits for a slot again; it reads anew what is not known by then.
    """

    def __init__(self, num_slots: int, pace: Pace, tables: BlockTables, prefixes: Prefixes) -> None:
        self.pace = pace
        self.tables = tables
        self.prefixes = prefixes
        self.num_preempted = 0
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

    def add(self, sequence: Sequence) -> None:
        self.waiting.setdefault(sequence.request.client, deque()).append(sequence)

    def plan(self) -> StepPlan:
        """Admits what fits, and says what the next step does."""
        self.admit()
        self.make_room({s: s.cursor + 1 + s.draft_room for s in self.running if s.is_prefilled})
        chunks = self.chunks(self.pace.budget(any(sequence.is_prefilled for sequence in self.running)))
        decoding = [sequence for sequence in self.running if sequence.is_prefilled]
        return StepPlan(decoding, chunks, len(self.running) - len(decoding))

    def admit(self) -> None:
        while self.waiting and self.free_slots:
            client = self.next_client()
            if not self.has_room(self.waiting[client][0]):
                return
            queue = self.waiting.pop(client)
            sequence = queue.popleft()
            if queue:
                self.waiting[client] = queue
            sequence.slot = self.free_slots.pop(0)
            sequence.admitted_at = sequence.admitted_at or time.perf_counter()
            self.running.append(sequence)

    def next_client(self) -> str | None:
        """The one whose turn it is; its next turn comes after all others'."""
        num_running = Counter(sequence.request.client for sequence in self.running)
        return min(self.waiting, key=lambda client: num_running[client])

    def has_room(self, sequence: Sequence) -> bool:
        """Whether there are blocks for all of its text, beside those that running ones lack for theirs; one each more.

        One alone always has.
        """
        lacking = [self.tables.num_missing(other.slot, len(other.ids)) + 1 for other in self.running]
        own = blocks_of(len(sequence.ids)) - self.prefixes.num_shared(sequence, self.running)
        return not self.running or own + sum(lacking) < self.tables.pool.num_available

    def make_room(self, lengths: dict[Sequence, int]) -> None:
        """Gives running sequences blocks for so many positions, in the order in which they began.

        Where there are none, the one that began last loses its own; so the first one has all that it needs in the end.
        """
        for sequence in [sequence for sequence in self.running if sequence in lengths]:
            while sequence in self.running and not self.tables.grow(sequence.slot, lengths[sequence]):
                self.preempt(self.running[-1])

    def preempt(self, sequence: Sequence) -> None:
        """Takes its slot and blocks from a running sequence, which is the next of its client's to get them again."""
        self.running.remove(sequence)
        self.give_up(sequence)
        sequence.cursor = 0
        client = sequence.request.client
        self.waiting = {client: deque(), **self.waiting} if client not in self.waiting else self.waiting
        self.waiting[client].appendleft(sequence)
        self.num_preempted += 1

    def give_up(self, sequence: Sequence) -> None:
        self.prefixes.keep(sequence)
        self.free_slots.append(sequence.slot)

    def chunks(self, budget: int) -> list[Chunk]:
        """Shares out so many tokens: half to the oldest prompt, the rest to those of which least is left."""
        reading = [sequence for sequence in self.running if not sequence.is_prefilled]
        if not reading:
            return []
        shares: Counter[Sequence] = Counter()
        turns = [(sequence, -(-budget // 2)) for sequence in reading[:1]]
        turns += [(sequence, budget) for sequence in sorted(reading, key=self.num_left)]
        for sequence, most in turns:
            room = min(most, budget - shares.total())
            if room > 0 and self.may_read(sequence, shares):
                shares[sequence] += min(room, sequence.reading_end - sequence.cursor - shares[sequence])
        self.make_room({sequence: sequence.cursor + count for sequence, count in shares.items()})
        served = [(sequence, count) for sequence, count in shares.items() if count and sequence in self.running]
        return [Chunk(sequence, sequence.ids[sequence.cursor :][:count]) for sequence, count in served]

    def num_left(self, sequence: Sequence) -> int:
        """Tokens of its text that are to be read."""
        known = sequence.cursor or self.prefixes.num_known(sequence, self.running)
        return sequence.reading_end - known

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
            self.give_up(sequence)
            return
        queue = self.waiting.get(sequence.request.client, deque())
        if sequence in queue:
            queue.remove(sequence)
        if not queue:
            self.waiting.pop(sequence.request.client, None)
