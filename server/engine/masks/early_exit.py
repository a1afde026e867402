"""Drafts from the first layers alone, as many as promise most."""

from server.engine.masks.base import MaskParts, register
from server.engine.masks.costs import PassCosts, best_length
from server.engine.masks.renewed import RenewedMask
from server.engine.sequence import Sequence
from server.engine.types import FULL_MODEL, DraftModel, SkipMask

NUM_TOKENS = 8
NUM_EXITS = 7
"""Depths that are compared."""
FADING = 0.7
"""What an exit's acceptance keeps of what it was before."""


@register
class EarlyExit(RenewedMask):
    """Stops a draft's pass after some layers, and takes depth and length that promise most; DEL, arXiv 2504.05598.

    The head reads the states behind each depth of the last eight tokens, as DEL's shadow tokens; what agrees with the
    full model counts for that depth, with what was counted before fading. Published: 2.16 to 2.62 over plain decoding,
    on models trained to exit early (LayerSkip, arXiv 2404.16710); others draft nothing here most of the time. DEL looks
    after every step, this after 32 tokens, and half as often each time that it finds the same: it costs a pass over
    eight rows, and the head over 56.
    """

    name = "early-exit"
    summary = "with the first layers alone, as many as promise most"
    published = "2.16-2.62"
    interval = 32

    def __init__(self, parts: MaskParts) -> None:
        super().__init__(parts)
        self.acceptances: dict[int, dict[int, float]] = {}
        """By sequence and by depth."""

    def choose(self, sequence: Sequence, ids: list[int]) -> DraftModel:
        costs, num_layers = PassCosts.of(self.parts.model, sequence.cursor), self.parts.model.config.num_layers
        known = self.acceptances.setdefault(sequence.id, {})
        known |= self.measured(sequence, ids, known)
        best, highest = FULL_MODEL, 1.0
        for depth, acceptance in known.items():
            left_out = frozenset(range(depth, num_layers))
            mask = SkipMask(left_out, left_out)
            rate, length = best_length(acceptance, costs.share(mask), sequence.max_draft)
            if rate > highest:
                best, highest = DraftModel(mask, max_draft=length), rate
        return best

    def measured(self, sequence: Sequence, ids: list[int], known: dict[int, float]) -> dict[int, float]:
        """The acceptance of each depth, of the last tokens and of those before."""
        reader, num_layers = self.reader(sequence, ids, NUM_TOKENS), self.parts.model.config.num_layers
        own = reader.likeliest(reader.trace[-1])
        acceptances = {}
        for depth in range(num_layers - 1, 0, -max(num_layers // (NUM_EXITS + 1), 1)):
            now = float((reader.likeliest(reader.trace[2 * depth]) == own).float().mean())
            acceptances[depth] = FADING * known.get(depth, now) + (1 - FADING) * now
        return acceptances

    def forget(self, sequence: Sequence) -> None:
        super().forget(sequence)
        self.acceptances.pop(sequence.id, None)
