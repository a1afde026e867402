"""Drafts as the route says: the model itself, some attention and MLP sub-layers left out, or over fewer tokens."""

from server.engine.sequence import Sequence
from server.engine.speculation.base import Proposals, register
from server.engine.speculation.drafters.chain import ChainDrafter
from server.engine.types import DraftModel


@register
class SkipDrafter(ChainDrafter):
    """Chains of the route's draft model, with draft weights of the low-bit copy; none where it is the full model."""

    name = "skip"
    summary = "the model with its route's sub-layers skipped"
    needs_draft_model = True

    def draft_model(self, sequence: Sequence) -> DraftModel:
        return sequence.route.draft

    def propose(self, sequences: list[Sequence]) -> Proposals:
        return super().propose([sequence for sequence in sequences if not sequence.route.draft.is_full])
