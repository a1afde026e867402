"""The stage of patches: one for each domain and one over all, kept with what they gained, and made once."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from offline.calibration.patching import patches
from offline.calibration.patching.patches import FittedPatch, domain_folder, fit_patches
from offline.calibration.scoring.continuations import make_texts
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
