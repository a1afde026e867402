"""Proposals find a planted optimum; trials survive interruptions; a search tries weights, vocabularies and masks."""

from pathlib import Path

import pytest

from offline.calibration.scoring import drafts
from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.drafts import DraftChoice, DraftParts
from offline.calibration.scoring.score import Score
from offline.calibration.search.bayes import FlipSpace
from offline.calibration.search.initial_masks import prefix_masks, rule_masks
from offline.calibration.search.race import DomainTraces, Objective
from offline.calibration.search.search import Searcher
from offline.calibration.search.starting_masks import StartingMasks
from offline.calibration.search.strategies import STRATEGIES, Strategy, explore
from offline.calibration.search.trials import MaskTrials, Trials
from offline.loaded_model import LoadedModel
from offline.settings import CalibrationSettings
from server.engine import (
    EMPTY_MASK,
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
    SkipMask,
    StopConditions,
    kernel_build,
)
from tests.batches import random_patch
from tests.offline.calibration.examples import COST, RANKED, VOCABULARY_SIZE, vocabularies
from tests.tiny import save_random_model, tiny_config

NUM_LAYERS = 6
PLANTED = SkipMask(frozenset({1, 2, 4, 5}), frozenset({3, 4, 5}))
LOW_BIT = DraftChoice(is_low_bit=True)


def distance(mask: SkipMask) -> int:
    return len(mask.attention ^ PLANTED.attention) + len(mask.mlp ^ PLANTED.mlp)


def planted_score(choice: DraftChoice, leader: DraftChoice | None = None) -> Score:
    """Best for the planted mask on the low-bit copy."""
    return Score(speedup=2.0 - 0.1 * distance(choice.mask) - 0.01 * (not choice.is_low_bit), acceptance=0.5)


def texts_of(model: Decoder, count: int, length: int = 40) -> list[Text]:
    engine = Engine(model, EngineConfig(max_batch=4, method="plain"))
    requests = [
        GenerationRequest([5 + (7 * i + j) % 200 for j in range(10 + i)], SamplingParams(), StopConditions(length))
        for i in range(count)
    ]
    return [Text(prompt_ids=s.request.prompt_ids, output_ids=s.output_ids) for s in engine.generate(requests)]


def test_points_stand_for_their_masks() -> None:
    space = FlipSpace(PLANTED, NUM_LAYERS)
    for mask in [PLANTED, EMPTY_MASK, *prefix_masks(NUM_LAYERS)]:
        point = space.point(mask)
        assert space.mask(point) == mask
        assert all(low <= point[name] <= high for name, (low, high) in space.bounds.items())


def started(path: Path | None, compute: Objective = planted_score) -> MaskTrials:
    masks = MaskTrials(Trials(path, "d", compute), [DraftChoice()])
    for mask in rule_masks(NUM_LAYERS):
        masks.speedup(mask)
    return masks


@pytest.mark.parametrize("name", ["greedy", "evolution", "bayesian"])
def test_a_strategy_finds_a_planted_optimum(name: str) -> None:
    trials = started(None)
    explore(STRATEGIES[name], trials, NUM_LAYERS, 100, seed=0)
    assert trials.trials.best == DraftChoice(mask=PLANTED)


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_keeps_to_its_budget_and_its_seed(strategy: Strategy) -> None:
    curves = []
    for seed in (0, 0, 1):
        trials = started(None)
        before = len(trials.speedups)
        explore(strategy, trials, NUM_LAYERS, 12, seed)
        assert before + 4 <= len(trials.speedups) <= before + 12, "a third of the budget, or all of it"
        curves.append(list(trials.speedups))
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_ends_where_no_mask_is_left(strategy: Strategy) -> None:
    trials = MaskTrials(Trials(None, "d", planted_score), [DraftChoice()])
    explore(strategy, trials, 1, 100, seed=0)
    assert 1 <= len(trials.speedups) <= 4


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    def failing(choice: DraftChoice, leader: DraftChoice | None) -> Score:
        if len(path.read_text().splitlines()) > 30:
            raise KeyboardInterrupt
        return planted_score(choice)

    strategy = STRATEGIES["evolution"]
    whole = started(tmp_path / "whole.jsonl")
    explore(strategy, whole, NUM_LAYERS, 60, seed=3)
    path = tmp_path / "cut.jsonl"
    cut = started(path, failing)
    with pytest.raises(KeyboardInterrupt):
        explore(strategy, cut, NUM_LAYERS, 60, seed=3)
    with path.open("a") as file:
        file.write('{"choice": {"mask": {"attention": [1')
    resumed = started(path)
    assert len(resumed.trials.recorded) == 30
    explore(strategy, resumed, NUM_LAYERS, 60, seed=3)
    assert resumed.speedups == whole.speedups
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_trials_of_other_inputs_are_not_used(tmp_path: Path) -> None:
    first = Trials(tmp_path / "trials.jsonl", "one", planted_score)
    first.speedup(LOW_BIT)
    assert Trials(tmp_path / "trials.jsonl", "one", planted_score).recorded
    assert not Trials(tmp_path / "trials.jsonl", "two", planted_score).recorded


def test_a_mask_is_worth_what_its_best_draft_is() -> None:
    trials = Trials(None, "d", planted_score)
    masks = MaskTrials(trials, [DraftChoice(), LOW_BIT])
    assert masks.best == 0.0
    assert masks.speedup(PLANTED) == masks.best == 2.0
    assert list(trials.speedups) == [DraftChoice(mask=PLANTED), LOW_BIT.with_mask(PLANTED)]
    assert trials.best == LOW_BIT.with_mask(PLANTED)
    assert trials.curve == [pytest.approx(1.99), 2.0]


def test_a_search_tries_the_patch_and_no_masks_without_hope(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks that begin far behind the best draft are not mutated further."""
    monkeypatch.setattr(drafts, "SIZES", (16, 64))
    options = {"model": str(tiny_checkpoint), "prompts": [Path("p")], "out": tmp_path, "dtype": "float32"}
    loaded = LoadedModel.open(CalibrationSettings.model_validate(options | {"budget": 30}))
    known = DraftParts(RANKED, VOCABULARY_SIZE, {"a": random_patch(loaded.model, 0)})
    settings = CalibrationSettings.model_validate(options | {"budget": 30})
    searcher = Searcher(loaded, known, COST, settings, "a", tmp_path, "d")
    starts = StartingMasks(loaded.model, known, COST, [])
    patched = [DraftChoice(patch_of="a", vocabulary=each) for each in known.vocabularies("a")]
    counts = {}
    for worth in (0.5, 3.0):

        def score(choice: DraftChoice, leader: DraftChoice | None, worth: float = worth) -> Score:
            return Score(speedup=worth, acceptance=0.5) if choice.patch_of else planted_score(choice)

        trials = Trials(None, "", score)
        searcher.search(trials, starts, seed=0)
        assert set(patched) <= set(trials.speedups)
        assert (trials.best in patched) == (worth == 3.0)
        counts[worth] = len(trials.speedups)
    assert counts[0.5] > counts[3.0] + 5
    assert Searcher(loaded, known, COST, settings, "b", tmp_path, "d").patched_drafts() == []


@pytest.mark.parametrize("draft_weights", ["none", "int4"])
def test_a_search_compares_vocabularies_and_weights_before_and_after_masks(
    draft_weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if draft_weights == "int4" and kernel_build() == "none":
        pytest.skip("no kernels for this processor")
    monkeypatch.setattr(drafts, "SIZES", (16, 64))
    folder = save_random_model(tmp_path / "model", tiny_config(head_dim=16))
    options = {"model": str(folder), "prompts": [Path("p")], "out": tmp_path, "dtype": "float32", "budget": 4}
    settings = CalibrationSettings.model_validate(options | {"draft_weights": draft_weights, "threads": 1})
    loaded, known = LoadedModel.open(settings), vocabularies()
    domain = DomainTraces(loaded.model, known, texts_of(loaded.model, 3, 20))
    searcher = Searcher(loaded, known, COST, settings, "a", tmp_path, "d")
    wholes = searcher.whole_drafts()
    assert wholes[0].is_full and len(set(wholes)) == len(wholes) == (6 if draft_weights == "int4" else 3)
    starts = StartingMasks(loaded.model, known, COST, domain.texts)
    trials = Trials(None, "", searcher.objective([domain]))
    searcher.search(trials, starts, seed=0)
    tried = list(trials.speedups)
    assert tried[: len(wholes)] == wholes
    bases = sorted(wholes, key=lambda choice: -trials.speedups[choice])[:2]
    skipping = {choice.with_mask(EMPTY_MASK) for choice in tried if not choice.mask.is_empty}
    assert set(bases) <= skipping <= {each.with_vocabulary(v) for each in bases for v in known.vocabularies("a")}
    assert {trials.best.with_vocabulary(each) for each in known.vocabularies("a")} <= set(tried)
    run = searcher.run("own", starts, searcher.objective([domain]), seed=0)
    assert run.choice == trials.best
    assert run == searcher.run("own", starts, planted_score, seed=0), "all is read from the file"


def test_texts_of_one_token_leave_the_rules_to_start_from(model: Decoder) -> None:
    texts = [Text(prompt_ids=[5, 6], output_ids=[2])]
    starts = StartingMasks(model, vocabularies(), COST, texts)
    assert starts.around([DraftChoice()]) == rule_masks(model.config.num_layers)
    assert starts.around([DraftChoice(), LOW_BIT]) == rule_masks(model.config.num_layers)
