"""Drafters propose tokens cheaply: by skipping sub-layers, by looking up n-grams, or by both in turn.

A drafter sees sequences and returns, for each, at most `draft_limit` ids. Whatever it returns, the
emitted text is the same; only the number of passes changes.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Protocol

from server.engine.cache import KVCache, TokenBatch
from server.engine.model import Decoder
from server.engine.sampling import choose_with_confidence
from server.engine.sequence import Sequence
from server.engine.types import Method, SkipMask

Drafts = dict[int, list[int]]
"""Drafted ids by sequence id; a sequence that is absent is decoded plainly."""


class Drafter(Protocol):
    def draft(self, sequences: list[Sequence]) -> Drafts: ...


class SkipDrafter:
    """Chains of the model with the route's mask; sequences of one mask are drafted as one batch."""

    def __init__(self, model: Decoder, cache: KVCache, confidence: float) -> None:
        self.model = model
        self.cache = cache
        self.confidence = confidence

    def draft(self, sequences: list[Sequence]) -> Drafts:
        groups: dict[SkipMask, list[Sequence]] = defaultdict(list)
        for sequence in sequences:
            if not sequence.route.mask.is_empty:
                groups[sequence.route.mask].append(sequence)
        drafts: Drafts = {}
        for mask, group in groups.items():
            drafts |= self.draft_group(group, mask)
        return drafts

    def draft_group(self, group: list[Sequence], mask: SkipMask) -> Drafts:
        """Drafts token by token; a sequence leaves at its limit, or after a token that the draft is unsure of."""
        drafts: Drafts = {sequence.id: [] for sequence in group}
        active = [sequence for sequence in group if sequence.draft_limit > 0]
        while active:
            rows = [(s.slot, s.cursor + len(drafts[s.id]), [(drafts[s.id] or s.ids)[-1]]) for s in active]
            batch = TokenBatch.of(rows, self.cache)
            logits = self.model.logits(self.model.forward(batch, self.cache, mask))
            draws = [s.draw(len(drafts[s.id])) for s in active]
            tokens, tops = choose_with_confidence(logits, draws)
            for sequence, token in zip(active, tokens, strict=True):
                drafts[sequence.id].append(token)
            active = [s for s, top in zip(active, tops, strict=True) if self.goes_on(s, drafts[s.id], top)]
        return drafts

    def goes_on(self, sequence: Sequence, draft: list[int], top: float) -> bool:
        is_end = draft[-1] in sequence.request.stop.token_ids
        return len(draft) < sequence.draft_limit and top >= self.confidence and not is_end


class NgramIndex:
    """Where each n-gram of a sequence last ended, extended as the sequence grows."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.ends: dict[tuple[int, ...], int] = {}
        self.length = 0

    def extend(self, ids: list[int]) -> None:
        """Indexes n-grams that end before the last id; the last ones are what is looked up."""
        for end in range(max(self.length, 1), len(ids)):
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(ids[end - size : end])] = end
        self.length = max(len(ids), 1)

    def continuation(self, ids: list[int], limit: int) -> list[int]:
        """What followed the latest earlier occurrence of the longest matching suffix, at most `limit` ids."""
        for size in self.sizes:
            end = self.ends.get(tuple(ids[-size:])) if size <= len(ids) else None
            if end is not None:
                return ids[end : end + limit]
        return []


class LookupDrafter:
    """Prompt lookup: continues as the same n-gram continued earlier in prompt or output; costs no pass."""

    def __init__(self, sizes: tuple[int, ...] = (4, 3)) -> None:
        self.sizes = sizes
        self.indexes: dict[int, NgramIndex] = {}

    def draft(self, sequences: list[Sequence]) -> Drafts:
        drafts: Drafts = {}
        for sequence in sequences:
            index = self.indexes.setdefault(sequence.id, NgramIndex(self.sizes))
            index.extend(sequence.ids)
            if found := index.continuation(sequence.ids, max(sequence.draft_limit, 0)):
                drafts[sequence.id] = found
        return drafts

    def forget(self, sequence_ids: Iterable[int]) -> None:
        for number in sequence_ids:
            self.indexes.pop(number, None)


class MethodDrafter:
    """Each sequence by its own method; the cascade looks up first and skips where nothing was found."""

    def __init__(self, skip: SkipDrafter, lookup: LookupDrafter) -> None:
        self.skip = skip
        self.lookup = lookup

    def draft(self, sequences: list[Sequence]) -> Drafts:
        drafts = self.lookup.draft([s for s in sequences if s.method in (Method.LOOKUP, Method.CASCADE)])
        remaining = [s for s in sequences if s.method in (Method.SKIP, Method.CASCADE) and s.id not in drafts]
        return drafts | self.skip.draft(remaining)
