"""The table of contexts and followers: the guesses of a plain reading of the method, in memory that never grows."""

from collections import defaultdict
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine.history.counts import ENTRY_BYTES, Counts, library, tokens_of
from server.engine.history.history import OWN_WEIGHT, Text

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")

LENGTHS = (1, 2, 3, 4, 6, 8)
PRIOR = 4
ids = st.lists(st.integers(0, 3), max_size=40)


@dataclass
class Followers:
    """Two followers of one context with their counts, after Misra and Gries."""

    token: int = -1
    hits: int = 0
    rival: int = -1
    rival_hits: int = 0
    visits: int = 0

    def count(self, token: int) -> None:
        self.visits += 1
        if token == self.token:
            self.hits += 1
        elif token != self.rival and self.rival_hits:
            self.rival_hits -= 1
        else:
            self.rival, self.rival_hits = token, self.rival_hits + 1
            if self.rival_hits > self.hits:
                self.token, self.rival = self.rival, self.token
                self.hits, self.rival_hits = self.rival_hits, self.hits


Table = dict[tuple[int, ...], Followers]


def counted(texts: list[list[int]]) -> Table:
    table: Table = defaultdict(Followers)
    for text in texts:
        for i, token in enumerate(text):
            for n in LENGTHS:
                if n <= i:
                    table[tuple(text[i - n : i])].count(token)
    return table


def guess(tables: list[tuple[Table, int]], text: list[int]) -> tuple[int, float]:
    """The likeliest next token and its chance, interpolated from the shortest context to the longest."""
    best, chance = -1, 0.0
    for n in LENGTHS:
        votes: dict[int, int] = {}
        visits = 0
        for table, weight in tables:
            if n <= len(text) and (known := table.get(tuple(text[-n:]))):
                for token, hits in ((known.token, known.hits), (known.rival, known.rival_hits)):
                    if hits:
                        votes[token] = votes.get(token, 0) + weight * hits
                visits += weight * known.visits
        if not visits:
            break
        chances = {token: hits / (visits + PRIOR) for token, hits in votes.items()}
        favourite = max(votes, key=lambda token: votes[token])
        old = chances.get(best, 0.0) + PRIOR * chance / (visits + PRIOR)
        best, chance = (
            (favourite, chances[favourite]) if favourite != best and chances[favourite] >= old else (best, old)
        )
    return best, chance


@given(st.lists(ids, max_size=3), ids.filter(bool), st.integers(0, 6), st.sampled_from([0.0, 0.2, 0.6]))
def test_drafts_are_those_of_the_method(past: list[list[int]], text: list[int], limit: int, floor: float) -> None:
    table, salt = Counts(4096), 7
    for each in past:
        table.add(salt, each, 0)
    running = Text(Counts(4096), table, [salt])
    running.continuation(text[: len(text) // 2], 0, floor)
    tables = [(counted([text]), OWN_WEIGHT), (counted(past), 1)]
    expected: list[int] = []
    chance = total = 0.0
    while len(expected) < limit:
        token, own = guess(tables, text + expected)
        chance = own * (chance if expected else 1.0)
        if token < 0 or chance < floor - 1e-6:
            break
        if chance < floor + 1e-6 and floor:
            return  # too near to the floor for single precision
        expected.append(token)
        total += chance
    drafted = running.continuation(text, limit, floor)
    assert drafted.ids == expected
    assert drafted.expected == pytest.approx(total, abs=1e-4)


def test_a_text_is_counted_alike_in_one_piece_and_in_many() -> None:
    text = [1, 2, 3, 1, 2, 3, 1, 2, 4, 1, 2, 3, 9, 1, 2]
    whole, pieces = Counts(1024), Counts(1024)
    whole.add(3, text, 0)
    for first in range(len(text)):
        pieces.add(3, text[: first + 1], first)
    assert sorted(map(bytes, whole.entries().numpy())) == sorted(map(bytes, pieces.entries().numpy()))


def test_under_another_salt_nothing_is_found() -> None:
    table = Counts(1024)
    table.add(1, [5, 6, 7] * 9, 0)
    assert Text(Counts(64), table, [1]).continuation([7, 5], 3, 0.0).ids == [6, 7, 5]
    assert Text(Counts(64), table, [2]).continuation([7, 5], 3, 0.0).ids == []


def test_memory_is_bounded_and_what_is_common_outlasts_what_is_rare() -> None:
    table = Counts.of_bytes(100_000)
    assert 50_000 <= table.nbytes <= 100_000
    common = list(range(1000, 1020))
    for _ in range(5):
        table.add(0, common, 0)
    chance = torch.Generator().manual_seed(0)
    for start in range(0, 10_000, 1000):
        table.add(0, torch.randint(0, 1000, (128,), generator=chance).tolist(), 0)
        table.add(0, common[start // 1000 :], 0)
    assert len(table.entries()) * ENTRY_BYTES <= table.nbytes
    assert Text(Counts(64), table, [0]).continuation(common[10:14], 4, 0.0).ids == common[14:18]


def test_counts_that_would_overflow_are_halved() -> None:
    table = Counts(64)
    table.add(0, [1] * 70_000, 0)
    assert Text(Counts(64), table, [0]).continuation([1] * 8, 1, 0.0).expected == pytest.approx(1, abs=0.01)


def test_entries_come_back_and_rare_ones_may_be_left_out() -> None:
    table, other = Counts(1024), Counts(2048)
    table.add(9, [1, 2, 3, 1, 2, 4, 1, 2, 3], 0)
    assert len(table.entries(3)) < len(table.entries())
    assert int(tokens_of(table.entries()).max()) == 4
    other.load(table.entries())
    texts = [Text(Counts(64), each, [9]) for each in (table, other)]
    assert texts[0].continuation([1, 2], 3, 0.0) == texts[1].continuation([1, 2], 3, 0.0)
    other.load(torch.empty(0, ENTRY_BYTES, dtype=torch.uint8))
