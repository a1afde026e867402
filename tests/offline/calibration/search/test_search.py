"""Proposals find a planted optimum; trials survive interruptions; scores mean what they say."""

from pathlib import Path

import pytest
import torch

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import LONGEST_DRAFT, CostModel
from offline.calibration.scoring.replay import FIRST_RULE, replay
from offline.calibration.scoring.score import SPAN, MaskScorer, Score, score_traces
from offline.calibration.search.bayes import FlipSpace
from offline.calibration.search.initial_masks import prefix_masks, rule_masks
from offline.calibration.search.race import Objective
from offline.calibration.search.strategies import STRATEGIES, Strategy, explore
from offline.calibration.search.trials import Trials
from server.engine import (
    EMPTY_MASK,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
    SkipMask,
    StopConditions,
    TokenBatch,
    load_checkpoint,
)
from tests.tiny import CPU, save_random_model, tiny_config

NUM_LAYERS = 6
PLANTED = SkipMask(frozenset({1, 2, 4, 5}), frozenset({3, 4, 5}))
COST = CostModel(num_layers=4, base=1.0, attention=1.0, mlp=1.0, full=[9.0] * (LONGEST_DRAFT + 1))


def distance(mask: SkipMask) -> int:
    return len(mask.attention ^ PLANTED.attention) + len(mask.mlp ^ PLANTED.mlp)


def planted_score(mask: SkipMask, leader: SkipMask | None = None) -> Score:
    return Score(speedup=2.0 - 0.1 * distance(mask), acceptance=0.5)


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


def started(path: Path | None, compute: Objective = planted_score) -> Trials:
    trials = Trials(path, "d", compute)
    for mask in rule_masks(NUM_LAYERS):
        trials.speedup(mask)
    return trials


@pytest.mark.parametrize("name", ["greedy", "evolution", "bayesian"])
def test_a_strategy_finds_a_planted_optimum(name: str) -> None:
    trials = started(None)
    explore(STRATEGIES[name], trials, NUM_LAYERS, 100, seed=0)
    assert trials.best == PLANTED


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_keeps_to_its_budget_and_its_seed(strategy: Strategy) -> None:
    curves = []
    for seed in (0, 0, 1):
        trials = started(None)
        before = len(trials.curve)
        explore(strategy, trials, NUM_LAYERS, 12, seed)
        assert before + 4 <= len(trials.curve) <= before + 12, "a third of the budget, or all of it"
        curves.append(list(trials.speedups))
    assert curves[0] == curves[1] != curves[2]


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_a_strategy_ends_where_no_mask_is_left(strategy: Strategy) -> None:
    trials = Trials(None, "d", planted_score)
    explore(strategy, trials, 1, 100, seed=0)
    assert 1 <= len(trials.speedups) <= 4


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    def failing(mask: SkipMask, leader: SkipMask | None) -> Score:
        if len(path.read_text().splitlines()) > 30:
            raise KeyboardInterrupt
        return planted_score(mask)

    strategy = STRATEGIES["evolution"]
    whole = started(tmp_path / "whole.jsonl")
    explore(strategy, whole, NUM_LAYERS, 60, seed=3)
    path = tmp_path / "cut.jsonl"
    cut = started(path, failing)
    with pytest.raises(KeyboardInterrupt):
        explore(strategy, cut, NUM_LAYERS, 60, seed=3)
    with path.open("a") as file:
        file.write('{"mask": {"attention": [1')
    resumed = started(path)
    assert len(resumed.recorded) == 30
    explore(strategy, resumed, NUM_LAYERS, 60, seed=3)
    assert resumed.speedups == whole.speedups
    assert path.read_text() == (tmp_path / "whole.jsonl").read_text()


def test_trials_of_other_inputs_are_not_used(tmp_path: Path) -> None:
    first = Trials(tmp_path / "trials.jsonl", "one", planted_score)
    first.speedup(EMPTY_MASK)
    assert Trials(tmp_path / "trials.jsonl", "one", planted_score).recorded
    assert not Trials(tmp_path / "trials.jsonl", "two", planted_score).recorded


@pytest.fixture(params=["torch", "kernels"])
def runner(request: pytest.FixtureRequest, model: Decoder, tmp_path: Path) -> Decoder:
    """A model that torch runs, or one of whole vectors, that the CPU kernels run where they are built."""
    if request.param == "torch":
        return model
    folder = save_random_model(tmp_path, tiny_config(num_key_value_heads=2, head_dim=16))
    return Decoder(load_checkpoint(str(folder), torch.float32, CPU))


def test_the_empty_mask_agrees_everywhere(runner: Decoder) -> None:
    model, texts = runner, texts_of(runner, 12)
    traces = MaskScorer(model, texts).traces(EMPTY_MASK)
    assert [len(trace.agrees) for trace in traces] == [len(text.output_ids) - 1 for text in texts]
    assert replay(traces, FIRST_RULE).acceptance == 1.0
    assert score_traces(traces, EMPTY_MASK, FIRST_RULE, COST).speedup == 1.0


def test_scores_do_not_depend_on_the_masks_before(model: Decoder) -> None:
    scorer = MaskScorer(model, texts_of(model, 3))
    masks = [SkipMask(frozenset({1}), frozenset({2, 3})), SkipMask(frozenset(), frozenset({0})), EMPTY_MASK]
    first = [scorer.traces(mask) for mask in masks]
    assert [scorer.traces(mask) for mask in reversed(masks)] == first[::-1]


def test_a_trace_begins_like_a_real_draft(model: Decoder) -> None:
    """Up to the first disagreement of a span, teacher forcing and drafting are the same thing."""
    mask = SkipMask(frozenset({3}), frozenset({2}))
    text = texts_of(model, 1)[0]
    trace = MaskScorer(model, [text]).traces(mask)[0]
    cache = model.new_cache(1, 80)
    ids = text.prompt_ids + text.output_ids
    with torch.inference_mode():
        model.forward(TokenBatch.of([(0, 0, text.prompt_ids)], cache), cache)
        for place in range(SPAN):
            at = len(text.prompt_ids) + place
            hidden = model.forward(TokenBatch.of([(0, at, [ids[at]])], cache), cache, DraftModel(mask))
            top, token = torch.softmax(model.logits(hidden), -1).max(-1)
            assert (int(token) == ids[at + 1]) == trace.agrees[place]
            assert float(top) == pytest.approx(trace.confidences[place], rel=1e-3)


def test_answers_of_one_token_give_nothing_to_score(model: Decoder) -> None:
    scorer = MaskScorer(model, [Text(prompt_ids=[5, 6], output_ids=[2])])
    assert scorer.traces(EMPTY_MASK) == []
    assert score_traces([], SkipMask(frozenset({1})), FIRST_RULE, COST).speedup == 1.0
