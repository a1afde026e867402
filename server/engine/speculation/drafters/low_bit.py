"""Drafts with a copy of the model in fewer bits."""

from server.engine.sequence import Sequence
from server.engine.speculation.base import register
from server.engine.speculation.drafters.chain import ChainDrafter
from server.engine.types import DraftModel


@register
class LowBitDrafter(ChainDrafter):
    """Chains of the whole low-bit copy over the route's vocabulary (ML-SpecQD, arXiv 2503.13565)."""

    name = "low-bit"
    summary = "a copy of the model in fewer bits"
    published = "to 2.0"
    needs_draft_weights = True

    def draft_model(self, sequence: Sequence) -> DraftModel:
        return DraftModel(vocabulary=sequence.route.draft.vocabulary, is_low_bit=True)
