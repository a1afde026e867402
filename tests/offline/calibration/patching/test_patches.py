"""The stage of patches: one for each domain and one over all, kept with what they gained, and made once."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from offline.calibration.patching import patches
from offline.calibration.patching.fit import Judge, Linear
from offline.calibration.patching.patches import (
    FittedPatch,
    Split,
    domain_folder,
    fit_patches,
    grouped,
    head_rows,
)
from offline.calibration.patching.places import places_of
from offline.calibration.scoring.continuations import Text, make_texts
from offline.calibration.vocabulary import TokenCounts
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.settings import CalibrationSettings

RANKED = {name: list(range(6, 206)) for name in ("a", "b", "c", MIXED)}


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> CalibrationSettings:
    return CalibrationSettings(model=str(tiny_checkpoint), prompts=[Path("p")], out=tmp_path, dtype="float32")


@pytest.fixture
def counted(settings: CalibrationSettings) -> dict[str, TokenCounts]:
    """Answered prompts of three domains, ten each; only the first domain has two answers to each."""
    loaded, counted = LoadedModel.open(settings), {}
    for first, name in enumerate("abc"):
        prompts = [[1, *(10 + 60 * first + (7 * i + j) % 50 for j in range(6))] for i in range(10)]
        texts = make_texts(loaded, prompts, 12)
        answered = [text for text in texts for _ in range(2 if name == "a" else 1)]
        counted[name] = TokenCounts(digest=name, answered=answered, counts=[])
    return counted


def fitted(settings: CalibrationSettings, counted: Mapping[str, TokenCounts]) -> dict[str, FittedPatch]:
    return fit_patches(LoadedModel.open(settings), counted, RANKED, settings, settings.out)


def test_every_domain_gets_a_patch_and_one_is_over_all(
    settings: CalibrationSettings, counted: dict[str, TokenCounts], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fitted(settings, counted)
    assert list(found) == ["a", "b", "c", MIXED]
    size = LoadedModel.open(settings).model.config.hidden_size
    for name, each in found.items():
        patch = each.patch(domain_folder(settings.out, name))
        assert (patch.start, patch.weight.shape, patch.bias.shape) == (0, (size, 2 * size), (size,))
        assert patch.rank is None and len(each.agreements) >= 2
        assert min(each.agreements) >= 0 and max(each.agreements) <= 1
    # Eight prompts of ten are fitted on, each with six places of the prompt and twelve of an answer; the mixed patch
    # is fitted on the whole of each domain where there are three.
    assert found["b"].num_places == 8 * 18 and found["a"].num_places == 8 * 30
    assert found[MIXED].num_places > found["a"].num_places
    monkeypatch.setattr(patches, "least_squares", None)
    assert fitted(settings, counted) == found, "read again"


def test_a_domains_patch_begins_at_the_mixed_one_where_that_agrees_more(
    settings: CalibrationSettings, counted: dict[str, TokenCounts], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two prompts of its own a domain learns little; those of its like tell more."""
    few = counted["a"].model_copy(update={"answered": counted["b"].answered[:2], "digest": "few"})
    found = fitted(settings, {"a": few, "b": counted["b"]})
    assert found["a"].is_from_mixed
    assert found["a"].agreements[0] == pytest.approx(agreement_of_mixed(settings, found, few), abs=1e-4)
    assert not found[MIXED].is_from_mixed


def agreement_of_mixed(settings: CalibrationSettings, found: dict[str, FittedPatch], counts: TokenCounts) -> float:
    """On the prompts that were kept apart for these counts."""
    loaded = LoadedModel.open(settings)
    mixed = found[MIXED].patch(domain_folder(settings.out, MIXED))
    judged = places_of(loaded.model, Split.of(grouped(counts.answered)).apart, 0)
    return Judge(judged, head_rows(loaded, RANKED["a"])).agreement(Linear(mixed.weight, mixed.bias))


def test_what_judges_a_domain_is_unknown_to_the_mixed_patch_too() -> None:
    groups = {
        name: [[Text(prompt_ids=[number], output_ids=[])] for number in range(first, first + 20)]
        for first, name in ((0, "a"), (50, "b"))
    }
    parts = [Split.of(each) for each in groups.values()]
    mixed = Split.joined([part.thinned(1) for part in parts])
    known = {text.prompt_ids[0] for group in mixed.rest for text in group}
    judging = {text.prompt_ids[0] for part in parts for group in part.apart for text in group}
    assert judging == {0, 8, 16, 50, 58, 66}
    assert not known & judging
    assert len(known) == 34


def test_a_patch_of_many_numbers_is_kept_as_two_factors(
    settings: CalibrationSettings, counted: dict[str, TokenCounts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patches, "MOST_NUMBERS", 500)
    found = fitted(settings, counted)["a"]
    size = LoadedModel.open(settings).model.config.hidden_size
    patch = found.patch(domain_folder(settings.out, "a"))
    assert patch.rank == 500 // (3 * size)
    assert [factor.shape for factor in patch.factors] == [(size, patch.rank), (patch.rank, 2 * size)]
    assert all(factor.dtype == torch.bfloat16 for factor in patch.factors)


def test_other_texts_make_another_patch(settings: CalibrationSettings, counted: dict[str, TokenCounts]) -> None:
    first = fitted(settings, counted)
    counted["b"] = counted["b"].model_copy(update={"digest": "changed"})
    second = fitted(settings, counted)
    assert second["a"] == first["a"] and second["c"] == first["c"]
    assert second["b"].digest != first["b"].digest and second[MIXED].digest != first[MIXED].digest


def test_one_prompt_is_enough(settings: CalibrationSettings, counted: dict[str, TokenCounts]) -> None:
    few = {"a": counted["a"].model_copy(update={"answered": counted["a"].answered[:2]})}
    assert fitted(settings, few)["a"].num_places == 30
