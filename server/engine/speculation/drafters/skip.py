"""Drafts as the route says: some sub-layers left out or a patch in their place, over fewer tokens, in fewer bits."""

from server.engine.sequence import Sequence
from server.engine.speculation.base import Proposals, register
from server.engine.speculation.drafters.chain import ChainDrafter
from server.engine.types import DraftModel


@register
class SkipDrafter(ChainDrafter):
    """Chains of the route's draft model; none where that is the full model, or of a copy that is not there."""

    name = "skip"
    summary = "the model with its route's sub-layers skipped or patched"
    published = "1.3-1.6"
    needs_draft_model = True

    def draft_model(self, sequence: Sequence) -> DraftModel:
        return sequence.route.draft

    def propose(self, sequences: list[Sequence], row_price: float) -> Proposals:
        return super().propose([sequence for sequence in sequences if self.can_draft(sequence)], row_price)

    def can_draft(self, sequence: Sequence) -> bool:
        draft = sequence.route.draft
        return not draft.is_full and (not draft.is_low_bit or self.model.low_bit is not None)
