"""What passes cost: the fit recovers a made-up machine, and drafts of every kind have a price."""

from pathlib import Path

import pytest

from offline.calibration.scoring.cost import FURTHER_ROWS, LONGEST_DRAFT, fit, make_cost, measure_cost, timed_drafts
from offline.calibration.scoring.drafts import DraftChoice, VocabularyChoice
from offline.loaded_model import LoadedModel
from offline.settings import CalibrationSettings
from server.engine import EMPTY_MASK, Decoder, SkipMask, kernel_build
from tests.offline.calibration.examples import COST
from tests.tiny import save_random_model, tiny_config

MASK = SkipMask(frozenset({1, 2}), frozenset({2}))


def test_the_fit_recovers_a_linear_machine(model: Decoder) -> None:
    drafts = timed_drafts(model)
    assert {(each.is_patched, round(each.share, 3)) for each in drafts} == {
        (is_patched, share) for is_patched in (False, True) for share in (0.122, 1.0)
    }
    seconds = [COST.own.seconds(4, each.draft.mask, each.share, each.is_patched) for each in drafts]
    fitted = fit(4, drafts, seconds)
    assert fitted.model_dump() == pytest.approx(COST.own.model_dump())


def test_a_draft_costs_what_it_computes() -> None:
    cost = COST.model_copy(update={"vocabulary_size": 4 * FURTHER_ROWS})
    assert cost.draft(DraftChoice()) == pytest.approx(9.0)
    assert cost.draft(DraftChoice(mask=MASK)) == pytest.approx(6.0)
    small = VocabularyChoice(of="a", size=FURTHER_ROWS)
    assert cost.rows(DraftChoice(vocabulary=small)) == 2 * FURTHER_ROWS
    assert cost.draft(DraftChoice(vocabulary=small)) == pytest.approx(9.0 - 0.25)
    assert cost.draft(DraftChoice(mask=MASK, vocabulary=small, is_low_bit=True)) == pytest.approx(3.0 - 0.125)
    large = VocabularyChoice(of="a", size=4 * FURTHER_ROWS - 1)
    assert cost.draft(DraftChoice(vocabulary=large)) == cost.draft(DraftChoice()), "no more rows than tokens"


def test_a_copy_that_was_not_timed_has_no_price() -> None:
    cost = COST.model_copy(update={"low_bit": None})
    with pytest.raises(ValueError, match="copy were not timed"):
        cost.draft(DraftChoice(is_low_bit=True))


def loaded(folder: Path, draft_weights: str) -> LoadedModel:
    settings = {"prompts": [Path("p")], "out": Path("o"), "dtype": "float32", "threads": 1}
    return LoadedModel.open(
        CalibrationSettings.model_validate(settings | {"model": str(folder), "draft_weights": draft_weights})
    )


@pytest.mark.parametrize("draft_weights", ["none", "int4"])
def test_passes_of_all_weights_are_timed(draft_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if draft_weights == "int4" and kernel_build() == "none":
        pytest.skip("no kernels for this processor")
    monkeypatch.setattr("offline.calibration.scoring.cost.ROUNDS", 3)
    model = loaded(save_random_model(tmp_path / "model", tiny_config(head_dim=16)), draft_weights)
    found = measure_cost(model, tmp_path)
    assert measure_cost(model, tmp_path) == found, "read again"
    assert (found.model.low_bit is not None) == (draft_weights == "int4")
    assert len(found.model.full) == LONGEST_DRAFT + 1
    assert found.model.full == sorted(found.model.full)
    assert found.model.vocabulary_size == 262
    for is_low_bit in (False, True)[: 1 + (draft_weights == "int4")]:
        assert found.model.draft(DraftChoice(mask=EMPTY_MASK, is_low_bit=is_low_bit)) > 0


def test_a_model_that_torch_runs_is_timed_too(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offline.calibration.scoring.cost.ROUNDS", 3)
    assert make_cost(loaded(tiny_checkpoint, "none"), "d").model.plain > 0
