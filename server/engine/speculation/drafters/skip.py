"""Drafts with the model itself, some attention and MLP sub-layers left out."""

from server.engine.sequence import Sequence
from server.engine.speculation.base import Proposals, register
from server.engine.speculation.drafters.chain import ChainDrafter
from server.engine.types import SkipMask


@register
class SkipDrafter(ChainDrafter):
    """Chains of the masked model, with draft weights of the masked low-bit copy; none where the mask is empty."""

    name = "skip"
    summary = "the model with its route's sub-layers skipped"
    needs_mask = True

    def mask(self, sequence: Sequence) -> SkipMask:
        return sequence.route.mask

    def propose(self, sequences: list[Sequence]) -> Proposals:
        return super().propose([sequence for sequence in sequences if not sequence.route.mask.is_empty])
