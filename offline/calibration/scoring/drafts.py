"""The drafts that are compared: a mask, a vocabulary, the weights; and how the engine's draft is made of one."""

from collections.abc import Mapping, Sequence

from offline.records import Strict
from server.engine import EMPTY_MASK, DraftModel, DraftVocabulary, JsonMask, SkipMask

SIZES = (1024, 2048, 4096, 8192)
"""Vocabularies that are tried; beside them, all tokens."""


class DraftRule(Strict):
    """A draft ends at `max_draft` tokens, or after a token whose top probability is under `confidence`."""

    max_draft: int
    confidence: float


class VocabularyChoice(Strict):
    """The `size` commonest tokens of a domain, or of `mixed`."""

    of: str
    size: int


class DraftChoice(Strict):
    """What a draft is computed with: some sub-layers, some tokens, the model's weights or the copy in fewer bits."""

    mask: JsonMask = EMPTY_MASK
    vocabulary: VocabularyChoice | None = None
    is_low_bit: bool = False

    @property
    def is_full(self) -> bool:
        """Whether it is the model itself, which is plain decoding."""
        return self.mask.is_empty and self.vocabulary is None and not self.is_low_bit

    def with_mask(self, mask: SkipMask) -> "DraftChoice":
        return self.model_copy(update={"mask": mask})

    def with_vocabulary(self, vocabulary: VocabularyChoice | None) -> "DraftChoice":
        return self.model_copy(update={"vocabulary": vocabulary})

    @property
    def parts(self) -> dict[str, "DraftChoice"]:
        """The draft reduced to one of its parts, and `all` of it."""
        return {
            "mask": DraftChoice(mask=self.mask),
            "vocabulary": DraftChoice(vocabulary=self.vocabulary),
            "bits": DraftChoice(is_low_bit=self.is_low_bit),
            "all": self,
        }

    def __str__(self) -> str:
        """As `12 skipped, low-bit, 1,024 tokens`."""
        weights = "low-bit" if self.is_low_bit else "own weights"
        tokens = f"{self.vocabulary.size:,} tokens" if self.vocabulary else "all tokens"
        return f"{self.mask.num_skipped} skipped, {weights}, {tokens}"


class Vocabularies:
    """Token ids by name of the domain, commonest first, and the vocabularies that are cut from them."""

    def __init__(self, ranked: Mapping[str, Sequence[int]], vocabulary_size: int) -> None:
        """`vocabulary_size`: the model's."""
        self.ranked = ranked
        self.vocabulary_size = vocabulary_size
        self.known: dict[VocabularyChoice, DraftVocabulary] = {}

    def choices(self, name: str) -> list[VocabularyChoice | None]:
        """The vocabularies to try for a domain or `mixed`: None, which is all tokens, and each smaller one of it."""
        limit = min(self.vocabulary_size, len(self.ranked[name]))
        return [None, *(VocabularyChoice(of=name, size=size) for size in SIZES if size < limit)]

    def vocabulary(self, choice: VocabularyChoice) -> DraftVocabulary:
        """One object per choice, since the engine keeps a head for each object.

        Raises `ValueError` where so many tokens were not counted.
        """
        if choice not in self.known:
            ranked = self.ranked.get(choice.of, ())
            if not 0 < choice.size <= len(ranked):
                raise ValueError(f"{choice.of!r} has {len(ranked)} counted tokens, a vocabulary asks for {choice.size}")
            self.known[choice] = DraftVocabulary(tuple(ranked[: choice.size]))
        return self.known[choice]

    def draft_model(self, choice: DraftChoice, rule: DraftRule | None = None) -> DraftModel:
        """The engine's draft; without a rule it ends as the engine's own do."""
        return DraftModel(
            mask=choice.mask,
            vocabulary=self.vocabulary(choice.vocabulary) if choice.vocabulary else None,
            is_low_bit=choice.is_low_bit,
            max_draft=rule.max_draft if rule else None,
            confidence=rule.confidence if rule else None,
        )
