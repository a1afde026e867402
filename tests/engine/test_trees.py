"""Trees of drafts: the text is that of plain decoding, bit for bit."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.engine import (
    Adjustments,
    Decoder,
    DraftModel,
    DraftVocabulary,
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    Route,
    SamplingParams,
    Sequence,
    StepStats,
    StopConditions,
    add_draft,
    load_checkpoint,
)
from server.engine.model import kernels
from server.engine.speculation.base import Draft
from server.engine.speculation.speculator import Speculator
from server.engine.speculation.verification import count_agreeing
from server.engine.trees import CheckedDraft, Tree
from tests.tiny import CPU, save_random_model, tiny_config, torch_decoder

VOCABULARY = 12
"""So few tokens that each has several successors."""
SAMPLINGS = [
    SamplingParams(),
    SamplingParams(0.8, seed=5),
    SamplingParams(1.5, top_k=6, seed=6),
    SamplingParams(1.0, seed=7, adjustments=Adjustments(presence_penalty=0.3, logit_bias=((4, 0.5),))),
]


@pytest.fixture(scope="module", params=["torch", "float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    config = tiny_config(vocab_size=VOCABULARY, head_dim=16)
    folder = save_random_model(tmp_path_factory.mktemp("twelve"), config, seed=9)
    if request.param == "torch":
        return torch_decoder(folder)
    if kernels.build() is None:
        pytest.skip("no kernels for this processor")
    return Decoder(load_checkpoint(str(folder), getattr(torch, request.param), CPU))


@pytest.fixture(scope="module")
def with_copy(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    """A model of more tokens, and a copy of it in 4 bits."""
    if kernels.build() is None:
        pytest.skip("no kernels for this processor")
    folder = save_random_model(tmp_path_factory.mktemp("copied"), tiny_config(head_dim=16), seed=9)
    checkpoint = load_checkpoint(str(folder), torch.bfloat16, CPU)
    decoder = Decoder(checkpoint)
    add_draft(decoder, checkpoint, "int4")
    return decoder


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the branches that were right where the draft was not."""
    lengths: list[int] = []
    best = Tree.best

    def noted(self: Tree, *checked: Any) -> CheckedDraft:
        chosen = best(self, *checked)
        if chosen.draft is not self.draft:
            lengths.append(count_agreeing(chosen.draft.ids, chosen.own.token_ids) + 1)
        return chosen

    monkeypatch.setattr(Tree, "best", noted)
    # No row costs anything, so that every branch is checked.
    monkeypatch.setattr("server.engine.speculation.speculator.FIRST_ROW_PRICE", 0.0)
    return lengths


def asked(number: int, sampling: SamplingParams, method: str = "recycling") -> GenerationRequest:
    words = torch.randint(3, VOCABULARY, (10 + 9 * number,), generator=torch.Generator().manual_seed(number)).tolist()
    return GenerationRequest([1, *words], sampling, StopConditions(60), method)


def engine(model: Decoder, max_tree: int, max_batch: int = 1) -> Engine:
    """Drafts are short, so that there is room for branches beside them."""
    config = EngineConfig(
        max_batch=max_batch, max_tree=max_tree, max_draft=4, is_adaptive=False, baseline_share=0, confidence=0.1
    )
    return Engine(model, config)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "top-k", "adjusted"])
def test_the_text_stays_the_same(model: Decoder, sampling: SamplingParams, taken: list[int]) -> None:
    branching = engine(model, 16)
    for number in range(4):
        request = asked(number, sampling)
        (plain,) = engine(model, 0).generate([replace(request, method="plain")])
        for _ in range(2):
            (drafted,) = branching.generate([request])
            assert drafted.output_ids == plain.output_ids
    assert taken
    assert max(taken) > 1, "a branch brings the draft's next tokens with it"


@pytest.mark.parametrize("size", [None, 200])
@pytest.mark.parametrize("method", ["low-bit", "cascade"])
def test_a_chain_that_ends_unsure_has_a_sibling(
    with_copy: Decoder, method: str, size: int | None, taken: list[int]
) -> None:
    vocabulary = DraftVocabulary(tuple(range(size))) if size else None
    route = Route("test", DraftModel(vocabulary=vocabulary, is_low_bit=True))
    branching = engine(with_copy, 16)
    for number in range(6):
        request = replace(asked(number, SAMPLINGS[0], method), route=route)
        (plain,) = engine(with_copy, 0).generate([replace(request, method="plain")])
        (drafted,) = branching.generate([request])
        assert drafted.output_ids == plain.output_ids
        assert drafted.stats.num_drafted
    assert taken


def test_a_sampled_chain_has_no_sibling(with_copy: Decoder, taken: list[int]) -> None:
    (drafted,) = engine(with_copy, 16).generate([asked(1, SAMPLINGS[1], "low-bit")])
    assert drafted.stats.num_drafted
    assert not taken


def test_fewer_steps_are_needed_than_without_branches(model: Decoder, taken: list[int]) -> None:
    steps = []
    for max_tree in (0, 8, 24):
        sequences = [engine(model, max_tree).generate([asked(i, SAMPLINGS[1])])[0] for i in range(4)]
        steps.append(sum(sequence.stats.num_steps for sequence in sequences))
    assert steps[0] > steps[1] >= steps[2]


def test_log_probabilities_and_scored_tokens_are_those_of_plain_decoding(model: Decoder, taken: list[int]) -> None:
    request = replace(asked(1, SAMPLINGS[1]), num_logprobs=2)
    scores = []
    for one in (replace(request, method="plain"), request):
        branching = engine(model, 16)
        branching.add(one)
        emissions = []
        while branching.has_work:
            emissions += branching.step()[0]
        scores.append([(s.token_id, round(s.logprob or 0, 4)) for emission in emissions for s in emission.logprobs])
    assert scores[0] == scores[1]
    assert taken


def test_several_at_once_have_a_tree_each(model: Decoder, taken: list[int]) -> None:
    branching = engine(model, 16, max_batch=2)
    requests = [asked(i, SAMPLINGS[1]) for i in (1, 2)]
    expected = [engine(model, 0).generate([replace(each, method="plain")])[0].output_ids for each in requests]
    short = replace(requests[1], stop=StopConditions(8))
    together = branching.generate([requests[0], short])
    assert [sequence.output_ids for sequence in together] == [expected[0], expected[1][:8]]
    assert taken


def test_a_chat_that_goes_on_reads_what_branches_wrote(model: Decoder, taken: list[int]) -> None:
    """The next turn takes over the slot's keys and values, of which some came from a branch."""
    branching = engine(model, 16)
    first = asked(2, SAMPLINGS[1])
    (answered,) = branching.generate([first])
    assert taken
    later = replace(first, prompt_ids=[*answered.ids, 5, 6])
    (reusing,) = branching.generate([later])
    (fresh,) = engine(model, 0).generate([replace(later, method="plain")])
    assert reusing.num_cached > len(first.prompt_ids)
    assert reusing.output_ids == fresh.output_ids


def guessing(monkeypatch: pytest.MonkeyPatch, truth: list[int], rng: random.Random) -> None:
    """Drafts random trees, in which ways of the true text begin and end anywhere."""

    def way(sequence: Sequence) -> list[int]:
        rest = truth[len(sequence.output_ids) :][: rng.randrange(6)]
        wrong = [rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(3))]
        return [*rest, *wrong][: sequence.draft_limit]

    def draft(self: Speculator, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        ways = {s.id: [way(s) for _ in range(rng.randrange(1, 12))] for s in sequences}
        return {number: Draft(ids, "recycling", tuple(others)) for number, (ids, *others) in ways.items()}

    monkeypatch.setattr(Speculator, "draft", draft)
    monkeypatch.setattr(Speculator, "learn", lambda *_: None)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), number=st.integers(0, 3), sampling=st.sampled_from(SAMPLINGS))
def test_any_tree_leaves_the_text_as_it_is(model: Decoder, seed: int, number: int, sampling: SamplingParams) -> None:
    request = asked(number, sampling)
    (plain,) = engine(model, 0).generate([replace(request, method="plain")])
    with pytest.MonkeyPatch.context() as patch:
        guessing(patch, plain.output_ids, random.Random(seed))
        (drafted,) = engine(model, 0).generate([request])
    assert drafted.output_ids == plain.output_ids
    assert drafted.stats.num_steps < plain.stats.num_steps


def test_a_tree_ends_at_the_end_of_the_context_and_at_a_stop_token(
    model: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(asked(2, SAMPLINGS[1]), stop=StopConditions(200))
    config = EngineConfig(max_batch=1, max_length=64, method="plain")
    (plain,) = Engine(model, config).generate([replace(request, method="plain")])
    assert len(plain.ids) == 64 and plain.finish_reason is FinishReason.LENGTH
    for seed in range(6):
        guessing(monkeypatch, plain.output_ids, random.Random(seed))
        (drafted,) = Engine(model, config).generate([request])
        assert drafted.ids == plain.ids and drafted.finish_reason is FinishReason.LENGTH
        last = plain.output_ids[-5]
        stopping = replace(request, stop=StopConditions(200, frozenset({last})))
        (drafted,) = Engine(model, config).generate([stopping])
        assert drafted.output_ids == plain.output_ids[: plain.output_ids.index(last) + 1]
        assert drafted.finish_reason is FinishReason.STOP


def test_trees_where_the_cache_has_no_room_for_all(model: Decoder, taken: list[int]) -> None:
    """Of two that grow, one has to give its blocks up and begins again later."""
    requests = [asked(i, SAMPLINGS[1]) for i in (1, 2)]
    expected = [engine(model, 0).generate([replace(each, method="plain")])[0].output_ids for each in requests]
    config = EngineConfig(max_batch=2, max_length=128, cache_tokens=128, max_tree=16, max_draft=4, is_adaptive=False)
    crowded = Engine(model, config)
    together = crowded.generate(requests)
    assert [sequence.output_ids for sequence in together] == expected
    assert crowded.scheduler.num_preempted
    assert taken


def test_rows_that_branches_have_in_common_are_one() -> None:
    sequence = Sequence.of(0, asked(0, SAMPLINGS[0]), "recycling", 8, 200)
    draft = Draft([5, 6, 7], "recycling", ([5, 8], [9], [5, 8, 4], [5, 6]))
    tree = Tree.of(sequence, draft)
    assert draft.num_rows == 6 and tree.num_rows == 7
    assert tree.branches == [[0, 1, 2, 3], [0, 1, 4], [0, 5], [0, 1, 4, 6], [0, 1, 2]]
    assert [len(ids) for _, _, ids in tree.rows] == [4, 1, 1, 1]
    assert [start for _, start, _ in tree.rows] == [0, 2, 1, 3]
    assert [each.parent for each in tree.stretches[1:]] == [1, 0, 4]
    draws = [draw.position for span in tree.spans for draw in span.draws]
    assert [place - len(sequence.ids) for place in draws] == [0, 1, 2, 3, 2, 1, 3]
