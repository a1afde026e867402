"""Which replica a request is best sent to: one that has its beginning, and is warm for its domain, unless it is busy.

It knows replicas by name and load only. `offline/capacity/simulation.py`, which may not import it, has the same rules.
"""

import hashlib
import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

MOST_BLOCKS = 100_000
"""Beginnings that are remembered, those of the last requests."""
EVEN = 1.25
"""A replica may have so many times the mean load before its requests go elsewhere."""
PREFIX_SLACK = 2
"""Requests that a replica may have beyond that where it has the prompt's beginning, which others would have to read."""
MOST_READERS = 8
"""Replicas of one beginning that are remembered, those that read it last."""


class Reason(StrEnum):
    """Why a replica was chosen: it has the prompt's beginning, is its domain's home, or is the less loaded of two."""

    PREFIX = "prefix"
    DOMAIN = "domain"
    LOAD = "load"


class Affinity:
    """Remembers who has read what; `by_prefix` and `by_domain` say what counts.

    With neither it is the power of two choices: of two replicas that chance picks, the less loaded one.
    """

    def __init__(self, by_prefix: bool = True, by_domain: bool = True, max_blocks: int = MOST_BLOCKS) -> None:
        self.by_prefix = by_prefix
        self.by_domain = by_domain
        self.max_blocks = max_blocks
        self.readers: OrderedDict[int, tuple[str, ...]] = OrderedDict()

    def choose(self, blocks: Sequence[int], domain: str | None, loads: Mapping[str, int]) -> tuple[str, Reason]:
        """The replica to ask, of those with a load, and why.

        The beginning narrows them, the domain picks one of what is left, and the bound on loads overrules both.
        """
        readers = self.readers_of(blocks, loads) if self.by_prefix else []
        wanted = within(loads, readers, PREFIX_SLACK)
        homes = homes_of(domain, wanted or loads) if domain and self.by_domain else []
        home = within(loads, homes, PREFIX_SLACK if wanted else 0)[:1]
        if home:
            return home[0], Reason.PREFIX if wanted else Reason.DOMAIN
        if wanted:
            return less_loaded(wanted, loads), Reason.PREFIX
        return less_loaded(list(loads), loads), Reason.LOAD

    def readers_of(self, blocks: Sequence[int], loads: Mapping[str, int]) -> list[str]:
        """Those replicas of `loads` that have read the longest known beginning; none where nobody has."""
        for block in reversed(blocks):
            readers = [replica for replica in self.readers.get(block, ()) if replica in loads]
            if readers:
                return readers
        return []

    def remember(self, blocks: Iterable[int], replica: str) -> None:
        """From now on this replica has the text."""
        for block in blocks:
            # A new tuple each time: the router reads in another thread.
            readers = self.readers.get(block, ())
            self.readers[block] = (*[other for other in readers if other != replica][-MOST_READERS + 1 :], replica)
            self.readers.move_to_end(block)
        while len(self.readers) > self.max_blocks:
            self.readers.popitem(last=False)


def within(loads: Mapping[str, int], replicas: Iterable[str], slack: int) -> list[str]:
    """The replicas that may take another request: consistent hashing with bounded loads (arXiv 1608.01350)."""
    most = max(1, int(EVEN * (sum(loads.values()) + 1) / len(loads))) + slack if loads else 0
    return [replica for replica in replicas if loads[replica] < most]


def homes_of(domain: str, replicas: Iterable[str]) -> list[str]:
    """The replicas in the order in which they are a domain's home, the same for every ingress (rendezvous hashing)."""
    return sorted(replicas, key=lambda replica: hashlib.blake2b(f"{domain} {replica}".encode()).digest())


def less_loaded(replicas: Sequence[str], loads: Mapping[str, int]) -> str:
    """The better of two that chance picks."""
    return min(random.sample(replicas, min(2, len(replicas))), key=lambda replica: loads[replica])
