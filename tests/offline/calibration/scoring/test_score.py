"""Scores mean what they say: a trace is what a real draft would do, over all tokens or over a vocabulary."""

from pathlib import Path

import pytest
import torch

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.drafts import DraftChoice, DraftParts, VocabularyChoice
from offline.calibration.scoring.replay import FIRST_RULE, replay
from offline.calibration.scoring.score import SPAN, DraftScorer, best_score, score_traces
from offline.calibration.scoring.text_head import known_places
from offline.loaded_model import LoadedModel
from offline.settings import CalibrationSettings
from server.engine import EMPTY_MASK, Decoder, DraftModel, SkipMask, TokenBatch, kernel_build, load_checkpoint
from tests.batches import random_patch
from tests.offline.calibration.examples import COST, RANKED, VOCABULARY_SIZE, vocabularies
from tests.offline.calibration.search.test_search import texts_of
from tests.tiny import CPU, save_random_model, tiny_config

SOME, OTHER = VocabularyChoice(of="a", size=60), VocabularyChoice(of="b", size=60)
MASK = SkipMask(frozenset({3}), frozenset({2}))


@pytest.fixture(params=["torch", "kernels"])
def runner(request: pytest.FixtureRequest, model: Decoder, tmp_path: Path) -> Decoder:
    """A model that torch runs, or one of whole vectors, that the CPU kernels run where they are built."""
    if request.param == "torch":
        return model
    folder = save_random_model(tmp_path, tiny_config(num_key_value_heads=2, head_dim=16))
    return Decoder(load_checkpoint(str(folder), torch.float32, CPU))


def test_the_empty_mask_agrees_everywhere(runner: Decoder) -> None:
    model, texts = runner, texts_of(runner, 12)
    traces = DraftScorer(model, vocabularies(), texts).traces(DraftChoice())
    assert [len(trace.agrees) for trace in traces] == [len(text.output_ids) - 1 for text in texts]
    assert replay(traces, FIRST_RULE).acceptance == 1.0
    assert score_traces(traces, DraftChoice(), FIRST_RULE, COST).speedup == 1.0


def test_scores_do_not_depend_on_the_drafts_before(model: Decoder) -> None:
    scorer = DraftScorer(model, vocabularies(), texts_of(model, 3))
    masks = [SkipMask(frozenset({1}), frozenset({2, 3})), SkipMask(frozenset(), frozenset({0})), EMPTY_MASK]
    choices = [DraftChoice(mask=mask, vocabulary=each) for mask in masks for each in (None, SOME, OTHER)]
    first = [scorer.traces(choice) for choice in choices]
    assert [scorer.traces(choice) for choice in reversed(choices)] == first[::-1]


def test_a_trace_begins_like_a_real_draft(model: Decoder) -> None:
    """Up to the first disagreement of a span, teacher forcing and drafting are the same thing."""
    mask = SkipMask(frozenset({3}), frozenset({2}))
    text = texts_of(model, 1)[0]
    trace = DraftScorer(model, vocabularies(), [text]).traces(DraftChoice(mask=mask))[0]
    cache = model.new_cache(1, 80)
    ids = text.prompt_ids + text.output_ids
    with torch.inference_mode():
        model.forward(TokenBatch([(0, 0, text.prompt_ids)], cache), cache)
        for place in range(SPAN):
            at = len(text.prompt_ids) + place
            hidden = model.forward(TokenBatch([(0, at, [ids[at]])], cache), cache, DraftModel(mask))
            top, token = torch.softmax(model.logits(hidden), -1).max(-1)
            assert (int(token) == ids[at + 1]) == trace.agrees[place]
            assert float(top) == pytest.approx(trace.confidences[place], rel=1e-3)


def test_a_patched_trace_begins_like_a_real_draft(model: Decoder) -> None:
    """With the model's own state before each place; so drafts of one token are scored as they are made."""
    patch, text = random_patch(model, 0), texts_of(model, 1)[0]
    known = DraftParts(RANKED, VOCABULARY_SIZE, {"a": patch})
    trace = DraftScorer(model, known, [text]).traces(DraftChoice(patch_of="a"))[0]
    ids = text.prompt_ids + text.output_ids
    cache = model.new_cache(1, 80)
    with torch.inference_mode():
        states = model.forward(TokenBatch([(0, 0, ids)], cache), cache)
        for place in range(len(text.output_ids) - 1):
            at = len(text.prompt_ids) + place
            batch = TokenBatch([(0, at, [ids[at]])], cache)
            hidden = model.forward(batch, cache, DraftModel(patch=patch), states[at - 1 : at])
            top, token = torch.softmax(model.logits(hidden), -1).max(-1)
            assert (int(token) == ids[at + 1]) == trace.agrees[place]
            assert float(top) == pytest.approx(trace.confidences[place], rel=1e-3)


def test_answers_of_one_token_give_nothing_to_score(model: Decoder) -> None:
    scorer = DraftScorer(model, vocabularies(), [Text(prompt_ids=[5, 6], output_ids=[2])])
    assert scorer.traces(DraftChoice()) == []
    assert score_traces([], DraftChoice(mask=SkipMask(frozenset({1}))), FIRST_RULE, COST).speedup == 1.0


@pytest.mark.parametrize("mask", [EMPTY_MASK, MASK])
def test_a_vocabulary_leaves_a_draft_its_own_tokens_and_the_texts(runner: Decoder, mask: SkipMask) -> None:
    """Beside a pass that looks at all logits, those of other tokens closed."""
    model, texts, known = runner, texts_of(runner, 5), vocabularies()
    choice = DraftChoice(mask=mask, vocabulary=SOME)
    scorer = DraftScorer(model, known, texts)
    traces = scorer.traces(choice)
    with torch.inference_mode():
        logits = model.logits(scorer.hidden_states(choice))
    at, num_new = 0, 0
    for text, trace in zip(texts, traces, strict=True):
        own = {*known.vocabulary(SOME).token_ids, *text.prompt_ids, *text.output_ids}
        closed = [token for token in range(262) if token not in own]
        for place, target in enumerate(text.output_ids[1:]):
            row = logits[at + place].clone()
            row[closed] = float("-inf")
            top, token = torch.softmax(row, -1).max(-1)
            seen = {*known.vocabulary(SOME).token_ids, *text.prompt_ids, *text.output_ids[: place + 1]}
            assert trace.agrees[place] == (int(token) == target and target in seen)
            assert trace.confidences[place] == pytest.approx(float(top), rel=1e-3)
            num_new += int(token) == target and target not in seen
        at += len(trace.agrees)
    if mask.is_empty:
        assert num_new, "a token that the text brings is not drafted before it came"
        assert 0 < replay(traces, FIRST_RULE).acceptance < 1


def test_known_tokens_are_the_vocabularys_the_prompts_and_the_answers_so_far() -> None:
    text = Text(prompt_ids=[1, 2], output_ids=[3, 3, 4, 2, 4, 9])
    assert known_places(text, {9}) == [True, False, True, True, True]
    assert known_places(Text(prompt_ids=[1], output_ids=[5]), set()) == []


def test_drafts_that_differ_in_their_vocabularies_share_a_pass(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, passes, forward = DraftScorer(model, vocabularies(), texts_of(model, 2)), [], Decoder.forward

    def counted(self: Decoder, *arguments: object) -> torch.Tensor:
        passes.append(arguments)
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "forward", counted)
    for vocabulary in (None, SOME, OTHER):
        scorer.traces(DraftChoice(mask=MASK, vocabulary=vocabulary))
    assert len(passes) == 1
    scorer.traces(DraftChoice(vocabulary=OTHER))
    assert len(passes) == 2


@pytest.mark.skipif(kernel_build() == "none", reason="no kernels for this processor")
def test_low_bit_drafts_run_on_the_copy(tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, tiny_config(head_dim=16))
    options = {"model": str(folder), "prompts": [Path("p")], "out": tmp_path, "dtype": "float32", "threads": 1}
    model = LoadedModel.open(CalibrationSettings.model_validate(options | {"draft_weights": "int4"})).model
    scorer = DraftScorer(model, vocabularies(), texts_of(model, 3))
    own, copied = (scorer.hidden_states(DraftChoice(is_low_bit=is_low_bit)) for is_low_bit in (False, True))
    assert model.low_bit is not None
    with torch.inference_mode():
        expected = model.low_bit.forward(scorer.batch, scorer.cache, DraftModel())
    assert torch.equal(copied, expected) and not torch.equal(own, copied)
    acceptance = replay(scorer.traces(DraftChoice(is_low_bit=True)), FIRST_RULE).acceptance
    assert 0 < acceptance < 1, "rounded weights agree mostly"


def test_a_low_bit_draft_without_a_copy_is_refused(model: Decoder) -> None:
    with pytest.raises(ValueError, match="needs a copy"):
        DraftScorer(model, vocabularies(), texts_of(model, 1)).traces(DraftChoice(is_low_bit=True))


def test_no_rule_scores_better_than_the_best(model: Decoder) -> None:
    choice = DraftChoice(mask=MASK)
    traces = DraftScorer(model, vocabularies(), texts_of(model, 3)).traces(choice)
    assert best_score(traces, choice, COST).speedup >= score_traces(traces, choice, FIRST_RULE, COST).speedup
    assert best_score(traces, DraftChoice(), COST).speedup == 1.0
