"""Drafters propose tokens cheaply: by skipping sub-layers, by looking up n-grams, or by both in turn.

What a grammar forces comes before what is looked up: both cost no pass.

A drafter sees sequences and returns, for each, at most `draft_limit` ids. Whatever it returns, the
emitted text is the same; only the number of passes changes.
"""

from collections import defaultdict

from server.engine.kvcache.slots import KVCache, TokenBatch
from server.engine.model.decoder import Decoder
from server.engine.sampling.distribution import choose_with_confidence
from server.engine.sampling.sampler import Span, adjusted
from server.engine.sequence import Sequence
from server.engine.speculation.policy import ARMS, Draft, DraftPolicy
from server.engine.speculation.verification import count_accepted
from server.engine.types import LONGEST_GROWTH, Method, SkipMask, StepStats

Drafts = dict[int, list[int]]
"""Drafted ids by sequence id."""


class SkipDrafter:
    """Chains of the model with the route's mask; sequences of one mask are drafted as one batch."""

    def __init__(self, model: Decoder, cache: KVCache, confidence: float) -> None:
        self.model = model
        self.cache = cache
        self.confidence = confidence

    def draft(self, sequences: list[Sequence]) -> Drafts:
        groups: dict[SkipMask, list[Sequence]] = defaultdict(list)
        for sequence in sequences:
            if not sequence.route.mask.is_empty and sequence.draft_limit > 0:
                groups[sequence.route.mask].append(sequence)
        drafts: Drafts = {}
        for mask, group in groups.items():
            drafts |= self.draft_group(group, mask)
        return drafts

    def draft_group(self, group: list[Sequence], mask: SkipMask) -> Drafts:
        """Drafts token by token; a sequence leaves at its limit, or after a token that the draft is unsure of."""
        if self.model.native and all(sequence.is_plainly_greedy for sequence in group):
            batch = TokenBatch.of([(s.slot, s.cursor, s.ids[-1:]) for s in group], self.cache)
            limits = [sequence.draft_limit for sequence in group]
            chains = self.model.native.draft(batch, self.cache, mask, limits, self.confidence)
            return {sequence.id: chain for sequence, chain in zip(group, chains, strict=True)}
        drafts: Drafts = {sequence.id: [] for sequence in group}
        active = group
        while active:
            rows = [(s.slot, s.cursor + len(drafts[s.id]), [(drafts[s.id] or s.ids)[-1]]) for s in active]
            batch = TokenBatch.of(rows, self.cache)
            logits = self.model.logits(self.model.forward(batch, self.cache, mask))
            spans = [Span(s, drafts[s.id], num_rows=1) for s in active]
            draws = [draw for span in spans for draw in span.draws]
            tokens, tops = choose_with_confidence(adjusted(logits, spans), draws)
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
    """Continues as the grammar must, or as the same n-gram continued earlier in prompt or output; costs no pass.

    A draft of which all was accepted is followed by one twice as long, any other by one of the
    sequence's own length again: a copied passage goes on, a chance match does not.
    """

    def __init__(self, sizes: tuple[int, ...] = (4, 3)) -> None:
        self.sizes = sizes
        self.indexes: dict[int, NgramIndex] = {}
        self.growths: dict[int, int] = {}

    def draft(self, sequences: list[Sequence]) -> Drafts:
        drafts: Drafts = {}
        for sequence in sequences:
            index = self.indexes.setdefault(sequence.id, NgramIndex(self.sizes))
            index.extend(sequence.ids)
            limit = sequence.grown_draft_limit(self.growths.get(sequence.id, 1))
            forced = sequence.walk.forced(sequence.ids, limit) if sequence.walk else []
            if found := forced or index.continuation(sequence.ids, limit):
                drafts[sequence.id] = found
        return drafts

    def learn(self, sequence_id: int, is_accepted: bool) -> None:
        self.growths[sequence_id] = min(2 * self.growths.get(sequence_id, 1), LONGEST_GROWTH) if is_accepted else 1

    def forget(self, sequence_id: int) -> None:
        self.indexes.pop(sequence_id, None)
        self.growths.pop(sequence_id, None)


NO_DRAFT = Draft([], Method.PLAIN)


class MethodDrafter:
    """Each sequence by its own method; the policy settles which arm of it, where there is one.

    Without a policy the cascade looks up first and skips where nothing was found.
    """

    def __init__(self, skip: SkipDrafter, lookup: LookupDrafter, policy: DraftPolicy | None = None) -> None:
        self.skip = skip
        self.lookup = lookup
        self.policy = policy
        self.found: Drafts = {}

    def draft(self, sequences: list[Sequence]) -> dict[int, Draft]:
        """Drafts by sequence id; a sequence that is absent is decoded plainly."""
        self.found = self.lookup.draft([s for s in sequences if Method.LOOKUP in ARMS[s.method]])
        arms = {s.id: self.arm(s, len(self.found.get(s.id, [])), len(sequences)) for s in sequences}
        skipped = self.skip.draft([s for s in sequences if arms[s.id] is Method.SKIP])
        drafts = {number: Draft(ids, Method.SKIP) for number, ids in skipped.items()}
        looked_up = {number: ids for number, ids in self.found.items() if arms[number] is Method.LOOKUP}
        return drafts | {number: Draft(ids, Method.LOOKUP) for number, ids in looked_up.items()}

    def arm(self, sequence: Sequence, num_found: int, num_rows: int) -> Method:
        if self.policy:
            return self.policy.choose(sequence, num_found, num_rows)
        if num_found:
            return Method.LOOKUP
        return Method.SKIP if Method.SKIP in ARMS[sequence.method] else Method.PLAIN

    def learn(
        self, sequences: list[Sequence], drafts: dict[int, Draft], emitted: list[list[int]], stats: StepStats
    ) -> None:
        """What a step's drafts gained and cost; `emitted` and `stats.rows` are those of `sequences`."""
        for sequence, row, ids in zip(sequences, stats.rows, emitted, strict=True):
            if found := self.found.pop(sequence.id, None):
                self.learn_lookup(sequence, found, ids)
            if self.policy and drafts.get(sequence.id, NO_DRAFT).arm is Method.SKIP:
                self.policy.observe_gain(Method.SKIP, sequence, row.num_accepted)
        if self.policy:
            self.policy.observe_seconds(list(drafts.values()), len(sequences), stats)

    def learn_lookup(self, sequence: Sequence, found: list[int], emitted: list[int]) -> None:
        """What was found is judged by what was emitted, whether or not it was drafted: that costs nothing.

        Where all that was emitted agrees, as much again is taken for granted.
        """
        agreed = count_accepted(found, emitted)
        is_open = agreed == len(emitted) < len(found)
        if not is_open:
            self.lookup.learn(sequence.id, agreed == len(found))
        if self.policy:
            self.policy.observe_gain(Method.LOOKUP, sequence, min(2 * agreed, len(found)) if is_open else agreed)

    def forget(self, sequence: Sequence) -> None:
        self.lookup.forget(sequence.id)
        self.found.pop(sequence.id, None)
        if self.policy:
            self.policy.forget(sequence)
