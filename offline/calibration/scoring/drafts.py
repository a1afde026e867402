"""The drafts that are compared, of a mask, a patch, a vocabulary and weights; and how the engine's are made of them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from offline.records import Strict
from server.engine import EMPTY_MASK, DraftModel, DraftVocabulary, JsonMask, Patch, SkipMask

NO_PATCHES: Mapping[str, Patch] = MappingProxyType({})
SIZES = (512, 1024, 2048, 4096, 8192)
"""Vocabularies that are tried; beside them, all tokens, and all that were counted."""


class DraftRule(Strict):
    """A draft ends at `max_draft` tokens, after a token whose top probability is under `confidence`, or before one
    under `floor`.
    """

    max_draft: int
    confidence: float
    floor: float = 0.0


class VocabularyChoice(Strict):
    """The `size` commonest tokens of a domain, or of `mixed`."""

    of: str
    size: int


class DraftChoice(Strict):
    """What a draft is computed with: some sub-layers, or a patch in their place; some tokens; the model's weights, or
    the copy in fewer bits.
    """

    mask: JsonMask = EMPTY_MASK
    patch_of: str | None = None
    """The domain whose patch takes the place of all layers, or `mixed`."""
    vocabulary: VocabularyChoice | None = None
    is_low_bit: bool = False

    @property
    def is_full(self) -> bool:
        """Whether it is the model itself, which is plain decoding."""
        return self == DraftChoice()

    def with_mask(self, mask: SkipMask) -> "DraftChoice":
        return self.model_copy(update={"mask": mask})

    def with_vocabulary(self, vocabulary: VocabularyChoice | None) -> "DraftChoice":
        return self.model_copy(update={"vocabulary": vocabulary})

    @property
    def parts(self) -> dict[str, "DraftChoice"]:
        """The draft reduced to one of its parts, and `all` of it."""
        return {
            "mask": DraftChoice(mask=self.mask),
            "patch": DraftChoice(patch_of=self.patch_of),
            "vocabulary": DraftChoice(vocabulary=self.vocabulary),
            "bits": DraftChoice(is_low_bit=self.is_low_bit),
            "all": self,
        }

    def __str__(self) -> str:
        """As `12 skipped, low-bit, 1,024 tokens`, or `patch of stories, own weights, 1,024 tokens`."""
        weights = "low-bit" if self.is_low_bit else "own weights"
        tokens = f"{self.vocabulary.size:,} tokens" if self.vocabulary else "all tokens"
        layers = f"patch of {self.patch_of}" if self.patch_of else f"{self.mask.num_skipped} skipped"
        return f"{layers}, {weights}, {tokens}"


class DraftParts:
    """What drafts are made of, by name of the domain: token ids, commonest first, and patches."""

    def __init__(
        self, ranked: Mapping[str, Sequence[int]], vocabulary_size: int, patches: Mapping[str, Patch] = NO_PATCHES
    ) -> None:
        """`vocabulary_size`: the model's."""
        self.ranked = ranked
        self.vocabulary_size = vocabulary_size
        self.patches = patches
        self.known: dict[VocabularyChoice, DraftVocabulary] = {}

    def vocabularies(self, name: str) -> list[VocabularyChoice | None]:
        """Those to try for a domain or `mixed`: None, which is all tokens, smaller ones, and all that were counted."""
        counted = len(self.ranked[name])
        sizes = [size for size in SIZES if size < counted] + [counted] * (0 < counted <= SIZES[-1])
        return [None, *(VocabularyChoice(of=name, size=size) for size in sizes if size < self.vocabulary_size)]

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
            patch=self.patches[choice.patch_of] if choice.patch_of else None,
            floor=rule.floor if rule else 0.0,
        )
