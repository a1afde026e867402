"""Keys and values of all sequences, allocated once and written by position, and the batch of tokens that writes them.

A sequence owns a slot: `max_length` positions in every layer. Positions below its cursor were written by a
full pass in every layer. A draft of four tokens after cursor 100 writes positions 100 to 103, in the layers
that it keeps; the check writes the same positions again, in every layer. If two tokens are accepted, the
cursor moves to 103; whatever stands above it is stale and is overwritten before it is ever read. So a
rejection costs nothing: no copy, no cropping.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import LANES, DecoderConfig
from server.engine.memory import reserve

Row = tuple[int, int, list[int]]
"""(slot, position of the first token, token ids)"""


class KVCache:
    """Tensors [layers, slots, kv heads, positions, head_dim] of keys and of values.

    The kernels order what one head holds as panels (`place` in `model/native/attention.hpp`), so positions
    are whole panels.
    """

    def __init__(
        self, config: DecoderConfig, num_slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        max_length += -max_length % LANES
        shape = (config.num_layers, num_slots, config.num_kv_heads, max_length, config.head_dim)
        self.num_groups = config.num_groups
        self.num_slots = num_slots
        self.max_length = max_length
        self.keys = untouched_zeros(shape, dtype, device)
        self.values = untouched_zeros(shape, dtype, device)

    def clear(self, slot: int, first: int = 0) -> None:
        """Forgets a slot's last user from a position on: to torch, hidden keys weigh nothing only as finite numbers.

        The kernels read no hidden position, so they are spared writing a whole slot for each request.
        """
        self.keys[:, slot, :, first:] = 0
        self.values[:, slot, :, first:] = 0

    def copy(self, source: int, target: int, end: int, first: int = 0) -> None:
        """Gives one slot the positions of another from `first` to before `end`.

        Whole panels of them, as the kernels' order needs: what stands around them in the first and last one too.
        """
        part = slice(first - first % LANES, end + -end % LANES)
        self.keys[:, target, :, part] = self.keys[:, source, :, part]
        self.values[:, target, :, part] = self.values[:, source, :, part]

    def write(self, layer: int, keys: Tensor, values: Tensor, batch: "TokenBatch") -> None:
        """Stores keys and values [tokens, kv heads, head_dim] at the batch's slots and positions."""
        self.keys[layer][batch.slots, :, batch.positions] = keys
        self.values[layer][batch.slots, :, batch.positions] = values

    def attend(self, layer: int, queries: Tensor, batch: "TokenBatch") -> Tensor:
        """Attention of queries [tokens, heads, head_dim] over their own slots -> [tokens, heads * head_dim].

        The query heads of one key head are folded into the query length, so that grouped-query
        attention needs no copies of keys.
        """
        keys = self.keys[layer, batch.row_slots, :, : batch.end]
        values = self.values[layer, batch.row_slots, :, : batch.end]
        if batch.gather is not None:
            queries = queries[batch.gather]
        rows, width, kv_heads = batch.num_rows, batch.width, keys.shape[1]
        queries = queries.view(rows, width, kv_heads, self.num_groups, -1).permute(0, 2, 3, 1, 4)
        folded = queries.reshape(rows, kv_heads, self.num_groups * width, -1)
        mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=batch.mask)
        mixed = mixed.view(rows, kv_heads, self.num_groups, width, -1).permute(0, 3, 1, 2, 4).flatten(2)
        return mixed.reshape(rows * width, -1) if batch.gather is None else mixed[batch.is_token]


@dataclass(frozen=True)
class TokenBatch:
    """The tokens of one pass, those of several sequences one after the other, and where each of them stands.

    Eight sequences that decode one token each are eight rows of one token; a prompt is one row of many. What
    only torch's attention needs (`mask`, `gather`) is made when it is first asked for, and never for the kernels.
    """

    rows: list[Row]
    device: torch.device
    dtype: torch.dtype
    num_groups: int

    @classmethod
    def of(cls, rows: list[Row], cache: KVCache) -> "TokenBatch":
        """The batch of these rows; the caller keeps every row within the cache's length."""
        return cls(rows, cache.keys.device, cache.keys.dtype, cache.num_groups)

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
    def slots(self) -> Tensor:
        return torch.tensor(self.flat[2], device=self.device)

    @cached_property
    def row_slots(self) -> slice | Tensor:
        return slot_range([slot for slot, _, _ in self.rows], self.device)

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
        mask = torch.zeros(is_hidden.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(is_hidden, float("-inf"))
        return mask.repeat(1, self.num_groups, 1)[:, None]


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU their memory is taken page by page as it is written.

    torch writes its zeros, so that eight slots of 32,768 tokens would take gigabytes before the first request.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return reserve(math.prod(shape) * dtype.itemsize, is_huge=False).view(dtype).view(shape)


def slot_range(slots: list[int], device: torch.device) -> slice | Tensor:
    """A slice, which reads the cache without copying, where the slots are consecutive."""
    if slots == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)
