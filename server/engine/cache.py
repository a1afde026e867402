"""Keys and values of all slots, allocated once and written by position; and the token batch that writes them.

Invariant: positions below a sequence's cursor were written by a full pass in every layer. Drafts
write at or above the cursor, in the layers they keep; verification rewrites the same positions in
every layer. So a rejection is a cursor that does not move, and stale entries are never read.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.checkpoint import DecoderConfig

Row = tuple[int, int, list[int]]
"""(slot, position of the first token, token ids)"""


class KVCache:
    """Tensors [layers, slots, kv heads, positions, head_dim] of keys and of values."""

    def __init__(
        self, config: DecoderConfig, num_slots: int, max_length: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, num_slots, config.num_kv_heads, max_length, config.head_dim)
        self.num_groups = config.num_groups
        self.num_slots = num_slots
        self.max_length = max_length
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def write(self, layer: int, keys: Tensor, values: Tensor, batch: "TokenBatch") -> None:
        """Stores keys and values [tokens, kv heads, head_dim] at the batch's slots and positions."""
        if batch.num_rows == 1:
            self.keys[layer, batch.slot, :, batch.start : batch.end] = keys.transpose(0, 1)
            self.values[layer, batch.slot, :, batch.start : batch.end] = values.transpose(0, 1)
        else:
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
    """Flat tokens of one or several slots, and where each of them stands.

    `mask` is additive, [rows, 1, groups * width, end]; None where every query sees all keys.
    `gather` [rows, width] pads rows of unequal length; None where all are equal.
    """

    ids: Tensor
    positions: Tensor
    slots: Tensor
    row_slots: slice | Tensor
    num_rows: int
    width: int
    slot: int
    start: int
    end: int
    mask: Tensor | None
    gather: Tensor | None
    is_token: Tensor | None
    last_rows: Tensor

    @classmethod
    def of(cls, rows: list[Row], cache: KVCache) -> "TokenBatch":
        """The batch of these rows; the caller keeps every row within the cache's length."""
        device = cache.keys.device
        lengths = [len(ids) for _, _, ids in rows]
        width, num_rows = max(lengths), len(rows)
        end = max(start + len(ids) for _, start, ids in rows)
        positions = torch.tensor([start + i for _, start, ids in rows for i in range(len(ids))], device=device)
        ends = torch.tensor(lengths, device=device).cumsum(0)
        is_ragged = min(lengths) < width
        gather = is_token = None
        if is_ragged:
            offsets = torch.arange(width, device=device)
            is_token = offsets < torch.tensor(lengths, device=device)[:, None]
            gather = torch.where(is_token, (ends - torch.tensor(lengths, device=device))[:, None] + offsets, 0)
        return cls(
            ids=torch.tensor([token for _, _, ids in rows for token in ids], device=device),
            positions=positions,
            slots=torch.tensor([slot for slot, _, ids in rows for _ in ids], device=device),
            row_slots=slot_range([slot for slot, _, _ in rows], device),
            num_rows=num_rows,
            width=width,
            slot=rows[0][0],
            start=rows[0][1],
            end=end,
            mask=attention_mask(positions, gather, num_rows, width, end, cache),
            gather=gather,
            is_token=is_token,
            last_rows=ends - 1,
        )


def slot_range(slots: list[int], device: torch.device) -> slice | Tensor:
    """A slice, which reads the cache without copying, where the slots are consecutive."""
    if slots == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, device=device)


def attention_mask(
    positions: Tensor, gather: Tensor | None, num_rows: int, width: int, end: int, cache: KVCache
) -> Tensor | None:
    """0 where a key's position is at most the query's, -inf elsewhere."""
    if num_rows == 1 and width == 1:
        return None
    query_positions = positions.view(num_rows, width) if gather is None else positions[gather]
    is_hidden = torch.arange(end, device=positions.device) > query_positions[..., None]
    mask = torch.zeros(is_hidden.shape, dtype=cache.keys.dtype, device=positions.device)
    mask.masked_fill_(is_hidden, float("-inf"))
    return mask.repeat(1, cache.num_groups, 1)[:, None]
