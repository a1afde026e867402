"""Drafts by cheaper passes of the model: what the drafters share that decode their drafts token by token."""

from abc import abstractmethod
from collections import defaultdict
from itertools import accumulate, compress, islice, zip_longest
from typing import Self

import torch
from torch import Tensor

from server.engine.history.history import History
from server.engine.kvcache.batch import Row, TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.decoder import Decoder
from server.engine.model.draft_head import DraftHead
from server.engine.model.native_decoder import Seconds
from server.engine.sampling.distribution import draw_with_confidence
from server.engine.sampling.native_sampling import packed
from server.engine.sampling.sampler import adjusted
from server.engine.sequence import Sequence
from server.engine.speculation.base import Drafter, DraftingParts, Feedback, Paths, Proposals
from server.engine.speculation.draft_heads import DraftHeads
from server.engine.speculation.siblings import Siblings, second_choice
from server.engine.types import DraftModel

LOW_BIT_ROW_PRICE = 0.3
"""Share of a copy's pass that a further row of it takes at least; where the model has 16 bits, its own may be free."""


class ChainDrafter(Drafter):
    """Chains of a cheaper pass of the model, a token a pass; sequences of the same draft model share a batch.

    A chain ends at its limit, at a stop token, and after a token whose top probability is under its draft
    model's confidence: at 0.5, after the first token that the draft itself would bet against. It ends before a
    token whose top probability is under the draft model's floor, and where nothing of its vocabulary may come next.
    These probabilities are at a temperature of 1: at 0.2 a draft is sure of nearly all, and not more often right.

    A text whose tokens the draft's vocabulary lacks too often is drafted over all tokens, where that is still a copy.

    Where the method drafts from the text and its like too, a chain without a patch is a cascade of two levels
    (ML-SpecQD, arXiv 2503.13565, section 4; CAS-Spec, arXiv 2510.26843): each cheap pass checks what these propose.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KVCache,
        confidence: float,
        heads: DraftHeads | None = None,
        history: History | None = None,
        grows_trees: bool = False,
    ) -> None:
        """`model` checks the drafts, and computes them where they are not low-bit; its copy has the same cache.

        `confidence` is that of draft models without one; the texts of `history` guess what they check. What
        `grows_trees` keeps the second choices beside a chain, where the kernels draft it.
        """
        self.model = model
        self.cache = cache
        self.confidence = confidence
        self.heads = heads or DraftHeads(model)
        self.texts = history.texts if history else {}
        self.siblings = Siblings() if grows_trees else None

    @classmethod
    def of(cls, parts: DraftingParts) -> Self:
        return cls(parts.model, parts.cache, parts.confidence, parts.heads, parts.history, parts.grows_trees)

    @abstractmethod
    def draft_model(self, sequence: Sequence) -> DraftModel:
        """How this sequence's drafts are computed."""

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        groups: dict[DraftModel, list[Sequence]] = defaultdict(list)
        for sequence in sequences:
            draft = self.heads.fitting(self.draft_model(sequence), sequence)
            if sequence.chain_limit(draft) > 0:
                groups[draft].append(sequence)
        proposals: Proposals = {}
        for draft, group in groups.items():
            proposals |= self.chains(group, draft, row_price)
        return proposals

    def chains(self, group: list[Sequence], draft: DraftModel, row_price: float) -> Proposals:
        """Chains of one draft model; the kernels run them whole, without a return to Python, where they may."""
        decoder, head = self.model.drafting(draft.is_low_bit), self.heads.grown(draft, group)
        if decoder.native is None or any(sequence.processor for sequence in group):
            return self.drawn_chains(group, draft, head)
        if draft.patch is None and all(sequence.id in self.texts for sequence in group):
            return self.guessed_chains(group, draft, head, row_price)
        batch = TokenBatch([(s.slot, s.cursor, s.ids[-1:]) for s in group], self.cache)
        limits, rows = [sequence.chain_limit(draft) for sequence in group], head.native if head else None
        states = last_states(group) if draft.patch else None
        samplings, confidence = packed([d for s in group for d in s.span([]).draws]), self.needed_confidence(draft)
        seconds: list[Seconds] | None = [] if self.siblings and not samplings else None
        chains = decoder.native.draft(batch, self.cache, draft, limits, confidence, rows, states, samplings, seconds)
        if self.siblings and seconds:
            for sequence, chain, second in zip(group, chains, seconds, strict=True):
                self.siblings.note(sequence, chain, second)
        return {sequence.id: chain for sequence, chain in zip(group, chains, strict=True) if chain}

    def guessed_chains(
        self, group: list[Sequence], draft: DraftModel, head: DraftHead | None, row_price: float
    ) -> Proposals:
        """The same chains in fewer passes: each goes over what the texts guess, as far as that is right."""
        drafts: Proposals = {sequence.id: [] for sequence in group}
        seconds: dict[int, Seconds] = {sequence.id: [] for sequence in group}
        decoder, active = self.model.drafting(draft.is_low_bit).native, group
        assert decoder is not None
        scored = head.native if head else None
        while active:
            before = [len(drafts[sequence.id]) for sequence in active]
            rows = [self.guessed_row(sequence, draft, drafts[sequence.id], row_price) for sequence in active]
            spans = [s.span(drafts[s.id] + ids[1:], len(ids)) for s, (_, _, ids) in zip(active, rows, strict=True)]
            batch, samplings = TokenBatch(rows, self.cache), packed([d for span in spans for d in span.draws])
            tokens, tops = decoder.chosen(batch, self.cache, draft, scored, samplings)
            pairs = zip(tokens, tops, strict=True)
            goes_on = [
                self.follow(sequence, draft, drafts[sequence.id], ids[1:], list(islice(pairs, len(ids))))
                for sequence, (_, _, ids) in zip(active, rows, strict=True)
            ]
            for sequence, known, first in zip(active, before, accumulate(batch.lengths, initial=0), strict=False):
                if self.siblings and sequence.request.sampling.is_greedy:
                    chosen = range(first, first + len(drafts[sequence.id]) - known)
                    seconds[sequence.id] += [
                        second_choice(decoder.drafting.row(row, scored), tops[row], scored) for row in chosen
                    ]
            active = list(compress(active, goes_on))
        if self.siblings:
            for sequence in group:
                self.siblings.note(sequence, drafts[sequence.id], seconds[sequence.id])
        return {number: chain for number, chain in drafts.items() if chain}

    def branches(self, sequence: Sequence, row_price: float, most: int) -> Paths:
        return self.siblings.branches(sequence, row_price, most) if self.siblings else ()

    def learn(self, sequence: Sequence, feedback: Feedback) -> None:
        self.heads.learn(self.draft_model(sequence), sequence, feedback.emitted)
        if self.siblings:
            self.siblings.learn(feedback)

    def guessed_row(self, sequence: Sequence, draft: DraftModel, drafted: list[int], row_price: float) -> Row:
        """The last token of a chain, and what may follow it; the pass's last token is the draft's own."""
        room = sequence.chain_limit(draft) - len(drafted) - 1
        floor = max(row_price, LOW_BIT_ROW_PRICE) if draft.is_low_bit else row_price
        guess = self.texts[sequence.id].further(sequence.ids, drafted, room, floor).ids
        return sequence.slot, sequence.cursor + len(drafted), [(drafted or sequence.ids)[-1], *guess]

    def follow(
        self, sequence: Sequence, draft: DraftModel, drafted: list[int], guess: list[int], own: list[tuple[int, float]]
    ) -> bool:
        """Takes over the draft's own tokens as long as they are as guessed, and one more; whether the chain goes on."""
        for (token, top), guessed in zip_longest(own, guess):
            if top < draft.floor:
                return False
            drafted.append(token)
            if not self.goes_on(sequence, draft, drafted, top):
                return False
            if token != guessed:
                return True
        return True

    def drawn_chains(self, group: list[Sequence], draft: DraftModel, head: DraftHead | None) -> Proposals:
        """The same a pass after the other, for logits that requests adjust, and for other devices."""
        drafts: Proposals = {sequence.id: [] for sequence in group}
        decoder, active = self.model.drafting(draft.is_low_bit), group
        hidden = last_states(group) if draft.patch else None
        while active:
            rows = [(s.slot, s.cursor + len(drafts[s.id]), [(drafts[s.id] or s.ids)[-1]]) for s in active]
            batch = TokenBatch(rows, self.cache)
            hidden = decoder.forward(batch, self.cache, draft, hidden)
            logits = adjusted((head or decoder).logits(hidden), [s.span(drafts[s.id]) for s in active])
            if head:
                # Of a vocabulary a grammar may leave nothing.
                is_open = logits.amax(-1) > float("-inf")
                logits, hidden = logits[is_open], hidden[is_open]
                active = list(compress(active, is_open.tolist()))
            draws = [draw for s in active for draw in s.span(drafts[s.id]).draws]
            tokens, tops = draw_with_confidence(logits, draws)
            goes_on = []
            for sequence, token, top in zip(active, tokens, tops, strict=True):
                if is_sure := top >= draft.floor:
                    drafts[sequence.id].append(token)
                goes_on.append(is_sure and self.goes_on(sequence, draft, drafts[sequence.id], top))
            active, hidden = list(compress(active, goes_on)), hidden[goes_on]
        return drafts

    def goes_on(self, sequence: Sequence, draft: DraftModel, ids: list[int], top: float) -> bool:
        is_end = ids[-1] in sequence.request.stop.token_ids
        return len(ids) < sequence.chain_limit(draft) and top >= self.needed_confidence(draft) and not is_end

    def needed_confidence(self, draft: DraftModel) -> float:
        return self.confidence if draft.confidence is None else draft.confidence

    def forget(self, sequence: Sequence) -> None:
        self.heads.forget(sequence)
        if self.siblings:
            self.siblings.forget(sequence)


def last_states(group: list[Sequence]) -> Tensor:
    """The full model's states [sequences, hidden_size] that the last ids were drawn from, in fp32."""
    return torch.stack([sequence.last_state for sequence in group]).float()
