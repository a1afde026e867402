"""What `/v1/models`, the metrics of an answer and `/map` say about a draft model."""

from typing import Self

from pydantic import BaseModel

from server.engine import DraftModel


class DraftCard(BaseModel):
    """A draft model: sub-layers that it leaves out, tokens that it scores, its weights, and where its drafts end.

    `patched_from` is the layer from which on a matrix takes the place of all others, null where none does; such
    layers are not among the skipped ones. A vocabulary of null is the whole one, a length or confidence of null the
    engine's.
    """

    skipped_attention: int
    skipped_mlp: int
    patched_from: int | None
    vocabulary_size: int | None
    is_low_bit: bool
    max_draft: int | None
    confidence: float | None
    floor: float

    @classmethod
    def of(cls, draft: DraftModel) -> Self:
        return cls(
            skipped_attention=len(draft.mask.attention),
            skipped_mlp=len(draft.mask.mlp),
            patched_from=draft.patch.start if draft.patch else None,
            vocabulary_size=len(draft.vocabulary.token_ids) if draft.vocabulary else None,
            is_low_bit=draft.is_low_bit,
            max_draft=draft.max_draft,
            confidence=draft.confidence,
            floor=draft.floor,
        )


class DraftStrip(DraftCard):
    """A draft model with the numbers of the attention and MLP sub-layers that it leaves out."""

    attention: list[int]
    mlp: list[int]

    @classmethod
    def of(cls, draft: DraftModel) -> Self:
        card = DraftCard.of(draft)
        return cls(**dict(card), attention=sorted(draft.mask.attention), mlp=sorted(draft.mask.mlp))
