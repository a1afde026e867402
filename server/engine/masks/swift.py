"""Searches the mask while it answers, by how well drafts would have foretold the answer so far."""

import random
from dataclasses import dataclass

from server.engine.masks.base import MaskParts, register
from server.engine.masks.renewed import RenewedMask
from server.engine.sequence import Sequence
from server.engine.types import DraftModel, SkipMask

WINDOW = 16
SHARE = 0.45
"""Of the sub-layers between first and last layer that are left out."""
GOOD_ENOUGH = 0.95
PATIENCE = 300
"""Proposals in turn that were no better, after which a domain keeps what it has."""


@dataclass
class Search:
    """The best mask of a domain so far, and how long none was better."""

    best: SkipMask
    misses: int = 0


@register
class SwiftMask(RenewedMask):
    """Looks for a mask on the fly, first after 16 tokens; SWIFT, arXiv 2410.06916.

    It begins with every other layer left out. A proposal is another choice of as many sub-layers; the better one goes
    on, judged by the share of the answer's last 16 tokens that its draft would have drawn. Published: 1.3 to 1.6 over
    plain decoding. SWIFT's every 25th proposal is a Bayesian one, and its best score stays from request to request;
    here all proposals are random, and the best is judged anew beside each. A domain shares its search. A proposal
    costs two passes over 16 rows, and an answer makes half as many each time that none was better; none where 0.95
    agree, or once 300 were no better.
    """

    name = "swift"
    summary = "with a mask that is searched while it answers"
    published = "1.3-1.6"
    interval = WINDOW

    def __init__(self, parts: MaskParts) -> None:
        super().__init__(parts)
        self.searches: dict[str, Search] = {}
        self.chance = random.Random(0)

    def choose(self, sequence: Sequence, ids: list[int]) -> DraftModel:
        domain = self.parts.nearest(sequence).domain
        search = self.searches.setdefault(domain, Search(every_other_layer(self.parts.model.config.num_layers)))
        if sequence.cursor - sequence.prompt_length >= WINDOW and search.misses < PATIENCE:
            self.improve(search, sequence, ids)
        return DraftModel(search.best)

    def improve(self, search: Search, sequence: Sequence, ids: list[int]) -> None:
        reader, written = self.reader(sequence, ids, WINDOW), ids[sequence.cursor + 1 - WINDOW : sequence.cursor + 1]

        def score(mask: SkipMask) -> float:
            drawn = reader.drawn(sequence, ids, DraftModel(mask))
            return sum(a == b for a, b in zip(drawn, written, strict=True)) / WINDOW

        best = score(search.best)
        if best >= GOOD_ENOUGH:
            return
        proposal = self.proposal()
        if score(proposal) > best:
            search.best, search.misses = proposal, 0
        else:
            search.misses += 1

    def proposal(self) -> SkipMask:
        """As many sub-layers as the first mask has at most, anywhere between first and last layer."""
        inner = range(1, self.parts.model.config.num_layers - 1)
        sublayers = [(layer, is_mlp) for layer in inner for is_mlp in (False, True)]
        chosen = self.chance.sample(sublayers, int(SHARE * len(sublayers)))
        attention = frozenset(layer for layer, is_mlp in chosen if not is_mlp)
        return SkipMask(attention, frozenset(layer for layer, is_mlp in chosen if is_mlp))


def every_other_layer(num_layers: int) -> SkipMask:
    odd = frozenset(range(1, num_layers - 1, 2))
    return SkipMask(odd, odd)
