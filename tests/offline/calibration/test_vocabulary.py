"""Which tokens are counted, how much each counts, and how domains are brought together."""

from pathlib import Path

import pytest

from offline.calibration.collect import CollectedPrompt, DomainPrompts, Part
from offline.calibration.scoring.continuations import Text, write_texts
from offline.calibration.vocabulary import (
    DRAWN_ANSWERS,
    TokenCounts,
    count_tokens,
    rank_tokens,
    ranked,
    weighted_counts,
)
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.settings import CalibrationSettings

HELDOUT_ONLY = 250


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> CalibrationSettings:
    return CalibrationSettings(
        model=str(tiny_checkpoint), prompts=[Path("p")], out=tmp_path, dtype="float32", continuation_tokens=8
    )


def domain() -> DomainPrompts:
    parts = [*[Part.ANCHOR] * 3, Part.SEARCH, Part.HELDOUT]
    prompts = [CollectedPrompt(part=part, ids=[30 + i, 40, 41]) for i, part in enumerate(parts)]
    prompts[-1] = CollectedPrompt(part=Part.HELDOUT, ids=[HELDOUT_ONLY] * 3)
    return DomainPrompts(digest="d", name="a", prompts=prompts, vector_file="")


def test_an_answers_token_counts_three_times() -> None:
    counts = weighted_counts([Text(prompt_ids=[1, 2, 2], output_ids=[3, 2]), Text(prompt_ids=[1], output_ids=[4])])
    assert counts == {1: 2, 2: 5, 3: 3, 4: 3}
    assert ranked(counts) == [2, 3, 4, 1], "equals by their ids"
    assert ranked(counts, [9, 4]) == [4, 9, 2, 3, 1]


def test_anchor_and_search_prompts_are_counted_and_heldout_ones_are_not(
    settings: CalibrationSettings, tmp_path: Path
) -> None:
    loaded = LoadedModel.open(settings)
    texts = write_texts(loaded, domain(), settings, tmp_path)
    found = count_tokens(loaded, domain(), texts, settings, tmp_path)
    each = 1 + DRAWN_ANSWERS
    assert [text.prompt_ids for text in found.answered[::each]] == domain().ids(Part.ANCHOR)
    assert len({tuple(text.output_ids) for text in found.answered[:each]}) == each, "one greedy, others drawn"
    assert dict(found.counts) == weighted_counts([*found.answered, *texts.search])
    assert all(len(text.output_ids) <= 8 for text in found.answered)
    assert [count for _, count in found.counts] == sorted((count for _, count in found.counts), reverse=True)
    answers = [token for text in [*found.answered, *texts.search] for token in text.output_ids]
    assert HELDOUT_ONLY not in dict(found.counts) or HELDOUT_ONLY in answers
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert count_tokens(loaded, domain(), texts, settings, tmp_path) == found, "read again"
    later = texts.model_copy(update={"digest": "other"})
    assert count_tokens(loaded, domain(), later, settings, tmp_path).digest != found.digest


def test_mixed_ranks_by_the_mean_of_the_shares(settings: CalibrationSettings) -> None:
    loaded = LoadedModel.open(settings)
    counted = {
        "large": TokenCounts(digest="l", answered=[], counts=[(7, 6000), (8, 4000)]),
        "small": TokenCounts(digest="s", answered=[], counts=[(8, 9), (9, 1)]),
    }
    found = rank_tokens(loaded, counted)
    assert loaded.checkpoint.eos_ids == {2}
    assert found == {"large": [2, 7, 8], "small": [2, 8, 9], MIXED: [2, 8, 7, 9]}
