"""The tokens of one pass, and where each of them stands in the cache."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from server.engine.kvcache.cache import BLOCK_LENGTH, KVCache

Row = tuple[int, int, list[int]]
"""(slot, position of the first token, token ids)"""


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one pass, those of several sequences one after the other.

    Eight sequences that decode one token each are eight rows of one token; a prompt is one row of many. What
    only torch's attention needs (`mask`, `gather`) is made when it is first asked for, and never for the kernels.
    The caller keeps every row within the blocks of its slot.

    A tree of drafts has a row for each of its branches, one behind the other. `forks` has, by a branch's number among
    the rows, the token that it begins behind, counted over the batch. Its own tokens have the positions of their branch
    and attend to no other, but are kept where the slot's row before has ended; `Decoder.keep_branch` then puts what
    turned out to be right where it belongs.
    """

    rows: list[Row]
    cache: KVCache
    forks: Mapping[int, int] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        return self.cache.keys.device

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @cached_property
    def lengths(self) -> list[int]:
        return [len(ids) for _, _, ids in self.rows]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @property
    def width(self) -> int:
        return max(self.lengths)

    @cached_property
    def flat(self) -> tuple[list[int], list[int], list[int]]:
        """(ids, positions, slots) of all tokens."""
        ids = [token for _, _, row in self.rows for token in row]
        positions = [start + i for _, start, row in self.rows for i in range(len(row))]
        return ids, positions, [slot for slot, _, row in self.rows for _ in row]

    @cached_property
    def ids(self) -> Tensor:
        return torch.tensor(self.flat[0], device=self.device)

    @cached_property
    def positions(self) -> Tensor:
        return torch.tensor(self.flat[1], device=self.device)

    @cached_property
    def places(self) -> list[int]:
        """Where in its slot each token is kept: at its position, except in a branch."""
        places: list[int] = []
        for number, (_, start, ids) in enumerate(self.rows):
            first = places[-1] + 1 if number in self.forks else start
            places += range(first, first + len(ids))
        return places

    @cached_property
    def parents(self) -> list[int]:
        """The token before each in its branch; -1 where all of these are kept at their positions."""
        parents: list[int] = []
        for number, (_, _, ids) in enumerate(self.rows):
            first = len(parents)
            parents += (
                [self.forks[number], *range(first, first + len(ids) - 1)] if number in self.forks else [-1] * len(ids)
            )
        return parents

    @cached_property
    def blocks(self) -> Tensor:
        """The block of each token."""
        size, slots = self.cache.table_size, self.flat[2]
        numbers = [slot * size + place // BLOCK_LENGTH for slot, place in zip(slots, self.places, strict=True)]
        return torch.tensor([self.cache.tables[number] for number in numbers], device=self.device)

    @cached_property
    def offsets(self) -> Tensor:
        """Where in its block each token stands."""
        return torch.tensor(self.places, device=self.device) % BLOCK_LENGTH

    @cached_property
    def row_blocks(self) -> Tensor:
        """The blocks [rows, blocks] of each row's slot, to the last place of any."""
        stored = max(self.places) + 1
        return torch.tensor([self.cache.table(slot, stored) for slot, _, _ in self.rows], device=self.device)

    @cached_property
    def key_places(self) -> Tensor | None:
        """Where the keys of each row's positions are kept [rows, end]; None where all are at their positions."""
        if not self.forks:
            return None
        places = torch.arange(self.end).repeat(self.num_rows, 1)
        for number in self.forks:
            token = sum(self.lengths[: number + 1]) - 1
            while self.parents[token] >= 0:
                places[number, self.flat[1][token]] = self.places[token]
                token = self.parents[token]
        return places.to(self.device)

    @property
    def last_rows(self) -> Tensor:
        """The index of each row's last token."""
        return torch.tensor(self.lengths, device=self.device).cumsum(0) - 1

    @property
    def end(self) -> int:
        return max(start + len(ids) for _, start, ids in self.rows)

    @cached_property
    def is_token(self) -> Tensor | None:
        """Which cells of [rows, width] hold a token; None where all do."""
        if min(self.lengths) == self.width:
            return None
        return torch.arange(self.width, device=self.device) < torch.tensor(self.lengths, device=self.device)[:, None]

    @cached_property
    def gather(self) -> Tensor | None:
        """The token of each cell of [rows, width], any token where there is none; None where rows are equal."""
        if self.is_token is None:
            return None
        return (self.is_token.flatten().cumsum(0) - 1).clamp(min=0).view(self.is_token.shape)

    @cached_property
    def mask(self) -> Tensor | None:
        """0 where a key's position is at most the query's, -inf elsewhere: [rows, 1, groups * width, end].

        None for a single token, which sees all keys.
        """
        if self.num_tokens == 1:
            return None
        positions = self.positions.view(self.num_rows, -1) if self.gather is None else self.positions[self.gather]
        is_hidden = torch.arange(self.end, device=self.device) > positions[..., None]
        mask = torch.zeros(is_hidden.shape, dtype=self.cache.keys.dtype, device=self.device)
        mask.masked_fill_(is_hidden, float("-inf"))
        return mask.repeat(1, self.cache.num_groups, 1)[:, None]
