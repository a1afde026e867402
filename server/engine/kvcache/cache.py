"""Keys and values of all sequences, in blocks of positions that are allocated once.

A sequence has a slot, and a slot a table of blocks: the third block of a table holds its positions 64 to 95. Positions
below a sequence's cursor were written by a full pass in every layer. A draft of four tokens after cursor 100 writes
positions 100 to 103, in the layers that it keeps; the check writes the same positions again, in every layer. If two
tokens are accepted, the cursor moves to 103; whatever stands above it is stale and is overwritten before it is ever
read. So a rejection costs nothing: no copy, no cropping.
"""

import math
from array import array
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.config import DecoderConfig
from server.engine.memory import reserve

if TYPE_CHECKING:
    from server.engine.kvcache.batch import TokenBatch

BLOCK_LENGTH = 32
"""Positions of a block, as in `model/native/cache.hpp`."""


class KVCache:
    """Tensors [blocks, layers, kv heads, positions of a block, head_dim] of keys and of values, and the slots' tables.

    The kernels order what one head holds of a block as panels (`model/native/cache.hpp`). `states`
    [blocks, positions of a block, state_size] are the full model's, for whoever wants them kept.
    """

    def __init__(
        self,
        config: DecoderConfig,
        num_slots: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
        num_blocks: int | None = None,
        state_size: int = 0,
        is_cleared: bool = False,
    ) -> None:
        """Without `num_blocks` every slot has the blocks of `max_length` positions for itself.

        Else there are so many, numbered from 1 on, for `BlockTables` to deal out; block 0 stands where a slot has none.
        With `is_cleared` they lose what they held when they get another user: to torch, hidden keys weigh nothing only
        as finite numbers. The kernels read none, and are spared the writing.
        """
        self.table_size = blocks_of(max_length)
        self.num_slots = num_slots
        self.num_groups = config.num_groups
        self.is_cleared = is_cleared
        count = num_slots * self.table_size
        self.num_blocks = count if num_blocks is None else num_blocks + 1
        shape = (self.num_blocks, config.num_layers, config.num_kv_heads, BLOCK_LENGTH, config.head_dim)
        self.keys = untouched_zeros(shape, dtype, device)
        self.values = untouched_zeros(shape, dtype, device)
        self.states = untouched_zeros((self.num_blocks, BLOCK_LENGTH, state_size), torch.float32, device)
        self.flat_states = self.states.flatten(0, 1)
        """The same [blocks * `BLOCK_LENGTH`, state_size], of which a part is had at once."""
        self.tables = array("i", range(count) if num_blocks is None else bytes(4 * count))
        """[slots, blocks of a slot], as the kernels read it."""

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes + self.states.nbytes

    def table(self, slot: int, length: int) -> list[int]:
        """The blocks of a slot's first positions."""
        first = slot * self.table_size
        return self.tables[first : first + blocks_of(length)].tolist()

    def place(self, slot: int, first: int, blocks: list[int]) -> None:
        """Puts blocks into a slot's table, from its block `first` on."""
        start = slot * self.table_size + first
        self.tables[start : start + len(blocks)] = array("i", blocks)

    def clear(self, block: int, first: int = 0) -> None:
        """Forgets a block's last user from one of its positions on, where that matters."""
        if self.is_cleared:
            self.keys[block, :, :, first:] = 0
            self.values[block, :, :, first:] = 0

    def copy_block(self, source: int, target: int, length: int) -> None:
        """Gives a block the first positions of another; what stands behind them is not to be read."""
        for part in (self.keys, self.values, self.states):
            part[target] = part[source]
        self.clear(target, length)

    def copy(self, source: int, target: int, end: int) -> None:
        """Gives one slot the positions of another to before `end`."""
        for i, blocks in enumerate(zip(self.table(source, end), self.table(target, end), strict=True)):
            self.copy_block(*blocks, min(end - i * BLOCK_LENGTH, BLOCK_LENGTH))

    def keep_states(self, slot: int, first: int, states: Tensor) -> None:
        """Keeps the states [tokens, state_size] of positions from `first` on."""
        table, done = self.table(slot, first + len(states)), 0
        while done < len(states):
            block, place = divmod(first + done, BLOCK_LENGTH)
            count = min(BLOCK_LENGTH - place, len(states) - done)
            part = states if count == len(states) else states[done : done + count]
            self.flat_states.narrow(0, table[block] * BLOCK_LENGTH + place, count).copy_(part)
            done += count

    def mean_state(self, slot: int, length: int) -> Tensor:
        """The mean [state_size] of those of a slot's first positions."""
        sizes = (min(BLOCK_LENGTH, length - first) for first in range(0, length, BLOCK_LENGTH))
        sums = [self.states[block, :size].sum(0) for block, size in zip(self.table(slot, length), sizes, strict=True)]
        return torch.stack(sums).sum(0) / length

    def write(self, layer: int, keys: Tensor, values: Tensor, batch: "TokenBatch") -> None:
        """Stores keys and values [tokens, kv heads, head_dim] at the batch's positions."""
        self.keys[batch.blocks, layer, :, batch.offsets] = keys
        self.values[batch.blocks, layer, :, batch.offsets] = values

    def keep_branch(self, slot: int, places: list[int], first: int) -> None:
        """Moves keys and values from these places of a slot, in all layers, to positions from `first` on."""
        table = self.table(slot, max(places) + 1)
        old, new = (
            (torch.tensor([table[at // BLOCK_LENGTH] for at in part]), torch.tensor([at % BLOCK_LENGTH for at in part]))
            for part in (places, range(first, first + len(places)))
        )
        for part in (self.keys, self.values):
            part[new[0], :, :, new[1]] = part[old[0], :, :, old[1]]

    def attend(self, layer: int, queries: Tensor, batch: "TokenBatch") -> Tensor:
        """Attention of queries [tokens, heads, head_dim] over their own slots -> [tokens, heads * head_dim].

        The query heads of one key head are folded into the query length, so that grouped-query
        attention needs no copies of keys.
        """
        keys, values = (self.gathered(part, layer, batch) for part in (self.keys, self.values))
        if batch.gather is not None:
            queries = queries[batch.gather]
        rows, width, kv_heads = batch.num_rows, batch.width, keys.shape[1]
        queries = queries.view(rows, width, kv_heads, self.num_groups, -1).permute(0, 2, 3, 1, 4)
        folded = queries.reshape(rows, kv_heads, self.num_groups * width, -1)
        mixed = F.scaled_dot_product_attention(folded, keys, values, attn_mask=batch.mask)
        mixed = mixed.view(rows, kv_heads, self.num_groups, width, -1).permute(0, 3, 1, 2, 4).flatten(2)
        return mixed.reshape(rows * width, -1) if batch.gather is None else mixed[batch.is_token]

    def gathered(self, part: Tensor, layer: int, batch: "TokenBatch") -> Tensor:
        """Keys or values [rows, kv heads, positions, head_dim] of a layer, to the end of the longest row."""
        stored = part[batch.row_blocks, layer].transpose(1, 2).flatten(2, 3)
        if batch.key_places is None:
            return stored[:, :, : batch.end]
        return stored.take_along_dim(batch.key_places[:, None, :, None], 2)


def blocks_of(length: int) -> int:
    """Blocks that hold so many positions."""
    return -(-length // BLOCK_LENGTH)


def untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU their memory is taken page by page as it is written.

    torch writes its zeros, so that eight slots of 32,768 tokens would take gigabytes before the first request.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return reserve(math.prod(shape) * dtype.itemsize, is_huge=True).view(dtype).view(shape)
