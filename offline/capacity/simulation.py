"""Replicas as queues whose steps cost what was measured: what is read, what is decoded, when each has its first token.

A step decodes a row for each answer that runs, and reads on in prompts: 64 tokens of them beside answers, 512 without.
Conversations come at random (Poisson); a turn follows the one before after a pause, and has all of it as its beginning.
"""

import heapq
import itertools
import math
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

BESIDE, ALONE = 64, 512
"""Tokens of prompts that a step reads."""
EVEN, SLACK = 1.25, 2
"""A replica that has read a conversation keeps it up to so many times the mean load, and so many more."""

NUM_REQUESTS = 1500
"""Requests of a run, enough for a 95th percentile."""

Routing = Literal["load", "prefix"]


@dataclass(frozen=True)
class Costs:
    """Milliseconds of a step, of each row in it, and of reading a token; a row gives so many tokens."""

    step_ms: float
    row_ms: float
    read_ms: float
    tokens_per_step: float = 1.0
    slots: int = 8


@dataclass(frozen=True)
class Traffic:
    """Turns of conversations, in tokens, and the mean seconds between an answer and the next turn."""

    turns: int = 3
    first_tokens: int = 160
    further_tokens: int = 12
    answer_tokens: int = 340
    pause: float = 10.0


@dataclass
class Turn:
    """One request of a conversation; `reader` has all that is before it."""

    conversation: int
    number: int
    length: int
    arrived: float
    reader: int | None = None
    unread: int = 0
    left: float = 0.0
    num_further: int = 0
    first: float = 0.0


@dataclass
class Replica:
    """`reading` have slots or wait for one, in their order; `running` are decoded."""

    reading: deque[Turn] = field(default_factory=deque)
    running: list[Turn] = field(default_factory=list)
    is_busy: bool = False

    @property
    def load(self) -> int:
        return len(self.reading) + len(self.running)


@dataclass(frozen=True)
class Result:
    """Seconds to the first token and for each further one, by request, and the share of prompts that was not read."""

    first: Sequence[float]
    further: Sequence[float]
    cached: float

    def percentile(self, values: Sequence[float], share: float) -> float:
        return sorted(values)[min(int(share * len(values)), len(values) - 1)]

    def holds(self, first: float, further: float) -> bool:
        """Whether 95 of 100 requests have their first token in time, and half their further ones."""
        return self.percentile(self.first, 0.95) <= first and statistics.median(self.further) <= further


class Simulation:
    """A run of so many requests; the same seed gives the same one."""

    def __init__(self, costs: Costs, traffic: Traffic, num_replicas: int, routing: Routing, seed: int = 0) -> None:
        self.costs = costs
        self.traffic = traffic
        self.routing = routing
        self.replicas = [Replica() for _ in range(num_replicas)]
        self.draw = random.Random(seed)
        self.order = itertools.count()
        self.events: list[tuple[float, int, Turn | int]] = []
        self.first: list[float] = []
        self.further: list[float] = []
        self.num_read = self.num_tokens = 0

    def run(self, rate: float, num_requests: int) -> Result:
        """Requests at a mean rate a second, all turns counted."""
        now = 0.0
        for conversation in range(max(1, num_requests // self.traffic.turns)):
            now += self.draw.expovariate(rate / self.traffic.turns)
            self.at(now, Turn(conversation, 0, self.traffic.first_tokens, now))
        while self.events:
            now, _, what = heapq.heappop(self.events)
            if isinstance(what, Turn):
                self.arrive(what)
            else:
                self.step(what, now)
        return Result(self.first, self.further, 1 - self.num_read / self.num_tokens)

    def at(self, time: float, what: Turn | int) -> None:
        heapq.heappush(self.events, (time, next(self.order), what))

    def arrive(self, turn: Turn) -> None:
        chosen = self.choose(turn)
        replica = self.replicas[chosen]
        known = turn.length - self.traffic.further_tokens if turn.reader == chosen else 0
        turn.reader, turn.unread = chosen, turn.length - known
        turn.left = self.draw.expovariate(1 / self.traffic.answer_tokens) + 1
        self.num_read += turn.unread
        self.num_tokens += turn.length
        replica.reading.append(turn)
        if not replica.is_busy:
            replica.is_busy = True
            self.step(chosen, turn.arrived)

    def choose(self, turn: Turn) -> int:
        """The one that has the conversation unless it is busy, or the less loaded of two that chance picks."""
        loads = [replica.load for replica in self.replicas]
        most = max(1, int(EVEN * (sum(loads) + 1) / len(loads))) + SLACK
        if self.routing == "prefix" and turn.reader is not None and loads[turn.reader] < most:
            return turn.reader
        two = self.draw.sample(range(len(loads)), min(2, len(loads)))
        return min(two, key=lambda number: loads[number])

    def step(self, number: int, now: float) -> None:
        """Begins a step: what it gives comes at its end, which is the time of the next."""
        replica, costs = self.replicas[number], self.costs
        if not replica.load:
            replica.is_busy = False
            return
        rows = len(replica.running)
        budget, num_read = BESIDE if rows else ALONE, 0
        begun: list[Turn] = []
        while replica.reading and budget and rows + len(begun) < costs.slots:
            turn = replica.reading[0]
            taken = min(turn.unread, budget)
            turn.unread, budget, num_read = turn.unread - taken, budget - taken, num_read + taken
            if turn.unread:
                break
            begun.append(replica.reading.popleft())
        seconds = (costs.step_ms + costs.row_ms * rows + costs.read_ms * num_read) / 1000
        self.give(replica, begun, now + seconds)
        self.at(now + seconds, number)

    def give(self, replica: Replica, begun: list[Turn], now: float) -> None:
        """Tokens at the end of a step: first ones of what was read, and the others'."""
        ended = []
        for turn in replica.running:
            turn.left -= self.costs.tokens_per_step
            if turn.left <= 0:
                ended.append(turn)
        replica.running = [turn for turn in replica.running if turn.left > 0] + begun
        for turn in begun:
            turn.first = now
            self.first.append(now - turn.arrived)
            turn.length += round(turn.left)
            turn.left -= 1
            turn.num_further = max(1, math.ceil(turn.left / self.costs.tokens_per_step))
        for turn in ended:
            self.further.append((now - turn.first) / turn.num_further)
            self.follow(turn, now)

    def follow(self, turn: Turn, now: float) -> None:
        """The conversation's next turn."""
        if turn.number + 1 < self.traffic.turns:
            arrival = now + self.draw.expovariate(1 / self.traffic.pause)
            length = turn.length + self.traffic.further_tokens
            self.at(arrival, Turn(turn.conversation, turn.number + 1, length, arrival, turn.reader))


def replicas_needed(
    costs: Costs, traffic: Traffic, rate: float, first: float, further: float, routing: Routing, most: int = 64
) -> int | None:
    """The fewest replicas that hold both goals at a rate; None where not even `most` do."""
    for num_replicas in range(1, most + 1):
        result = Simulation(costs, traffic, num_replicas, routing).run(rate, NUM_REQUESTS)
        if result.holds(first, further):
            return num_replicas
    return None
