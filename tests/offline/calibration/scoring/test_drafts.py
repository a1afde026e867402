"""Drafts as values, and the engine's drafts that are made of them."""

import pytest

from offline.calibration.scoring import drafts
from offline.calibration.scoring.drafts import DraftChoice, DraftParts, DraftRule, VocabularyChoice
from offline.prompts import MIXED
from server.engine import SkipMask
from tests.offline.calibration.examples import RANKED, vocabularies

MASK = SkipMask(frozenset({1, 2}), frozenset({2}))
SOME = VocabularyChoice(of="a", size=7)
WHOLE = DraftChoice(mask=MASK, vocabulary=SOME, is_low_bit=True)


def test_only_the_model_itself_is_full() -> None:
    assert DraftChoice().is_full
    for part in (DraftChoice(mask=MASK), DraftChoice(vocabulary=SOME), DraftChoice(is_low_bit=True), WHOLE):
        assert not part.is_full
        assert not DraftParts(RANKED, 262).draft_model(part).is_full


def test_choices_are_keys_and_survive_json() -> None:
    again = DraftChoice.model_validate_json(WHOLE.model_dump_json())
    assert again == WHOLE and hash(again) == hash(WHOLE)
    assert len({WHOLE, again, WHOLE.with_vocabulary(None), WHOLE.with_mask(SkipMask())}) == 3


def test_a_draft_is_reduced_to_its_parts() -> None:
    assert WHOLE.parts == {
        "mask": DraftChoice(mask=MASK),
        "patch": DraftChoice(),
        "vocabulary": DraftChoice(vocabulary=SOME),
        "bits": DraftChoice(is_low_bit=True),
        "all": WHOLE,
    }
    assert all(part.is_full for part in DraftChoice().parts.values())
    assert str(WHOLE) == "3 skipped, low-bit, 7 tokens"
    patched = DraftChoice(patch_of="a", vocabulary=SOME)
    assert patched.parts["patch"] == DraftChoice(patch_of="a")
    assert str(patched) == "patch of a, own weights, 7 tokens"
    assert str(DraftChoice()) == "0 skipped, own weights, all tokens"


def test_a_vocabulary_is_one_object_of_the_commonest_tokens() -> None:
    known = vocabularies()
    draft = known.draft_model(WHOLE, DraftRule(max_draft=6, confidence=0.35))
    assert draft.vocabulary is not None and draft.vocabulary.token_ids == tuple(range(7))
    assert (draft.mask, draft.is_low_bit, draft.max_draft, draft.confidence) == (MASK, True, 6, 0.35)
    assert known.draft_model(WHOLE.with_mask(SkipMask())).vocabulary is draft.vocabulary
    assert known.draft_model(DraftChoice()).max_draft is None


@pytest.mark.parametrize(("of", "size"), [("a", 121), ("a", 0), ("elsewhere", 1)])
def test_more_tokens_than_were_counted_are_refused(of: str, size: int) -> None:
    with pytest.raises(ValueError, match="counted tokens"):
        vocabularies().vocabulary(VocabularyChoice(of=of, size=size))


def test_sizes_are_below_the_counted_and_the_models_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """And all that were counted, where they are not more than the largest size."""
    assert [each and each.size for each in vocabularies().vocabularies("a")] == [None, 120]
    monkeypatch.setattr(drafts, "SIZES", (16, 64, 120))
    assert [each and each.size for each in vocabularies().vocabularies(MIXED)] == [None, 16, 64, 120]
    assert [each and each.size for each in DraftParts(RANKED, 64).vocabularies("a")] == [None, 16]
