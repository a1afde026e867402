"""Drafts over a part of the vocabulary: they propose nothing else, and the text is that of plain decoding."""

import random
from dataclasses import replace

import pytest
import torch

from server.engine import (
    Adjustments,
    Decoder,
    DraftModel,
    DraftVocabulary,
    Engine,
    EngineConfig,
    GenerationRequest,
    Grammar,
    GrammarCompiler,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StepStats,
    StopConditions,
    Vocabulary,
)
from server.engine.speculation import draft_heads
from server.engine.speculation.base import Draft
from server.engine.speculation.speculator import Speculator
from tests.batches import Models, read_prompts
from tests.tiny import byte_tokenizer

END = 2
STOP = StopConditions(40, frozenset({END}))
COMPILER = GrammarCompiler(Vocabulary(byte_tokenizer()), 262, frozenset({END}))
ANY_LETTERS = COMPILER.compile(Grammar.of_lark("start: /[a-z ]{4,30}/"))
SAMPLINGS = {
    "greedy": SamplingParams(),
    "sampled": SamplingParams(0.8, top_p=0.95, seed=5),
    "top-k": SamplingParams(1.2, top_k=20, seed=6),
    "penalised": SamplingParams(adjustments=Adjustments(((40, 3.0), (41, -2.0)), 1.3, 0.4, 0.2)),
    "sampled and penalised": SamplingParams(0.7, seed=7, adjustments=Adjustments(repetition_penalty=1.2)),
}
VOCABULARIES = [
    DraftVocabulary(tuple(random.Random(i).sample(range(262), count))) for i, count in enumerate((0, 1, 40, 180))
]
MASKS = [SkipMask(), SkipMask(frozenset({1})), SkipMask(frozenset({3}), frozenset({2}))]
DRAFTS = [DraftModel(mask, vocabulary) for vocabulary in (None, *VOCABULARIES) for mask in MASKS]


ALL_MODELS = ["torch", "float32", "bfloat16", "float32 int4", "bfloat16 int4"]


def prompt(number: int, length: int = 12) -> list[int]:
    words = random.Random(number).choices(range(6, 262), k=length + 3 * number)
    return [1, *words, *words]


def asked(number: int, draft: DraftModel, method: str = "skip", sampling: str = "greedy") -> GenerationRequest:
    route = Route("test", draft)
    return GenerationRequest(prompt(number), SAMPLINGS[sampling], STOP, method=method, route=route, max_draft=5)


def new_engine(model: Decoder, max_batch: int, confidence: float = 0.0) -> Engine:
    config = EngineConfig(max_batch=max_batch, confidence=confidence, is_adaptive=False, baseline_share=0)
    return Engine(model, config)


def plain_texts(model: Decoder, requests: list[GenerationRequest]) -> list[list[int]]:
    plain = [replace(request, method="plain", route=None) for request in requests]
    return [new_engine(model, 1).generate([request])[0].output_ids for request in plain]


def methods_of(model: Decoder) -> list[str]:
    return ["skip", "cascade"] + ["low-bit"] * (model.low_bit is not None)


@pytest.mark.parametrize("confidence", [0.0, 0.3])
@pytest.mark.parametrize("name", ALL_MODELS)
def test_sequences_of_different_vocabularies_share_a_batch_and_write_the_plain_text(
    models: Models, name: str, confidence: float
) -> None:
    """Two and two of one draft model; some pairs are drafted by the kernels alone."""
    model = models(name)
    samplings = ["greedy", "greedy", "greedy", *SAMPLINGS]
    for shift, method in enumerate(methods_of(model)):
        drafts = [DRAFTS[(7 * (i // 2) + shift) % len(DRAFTS)] for i in range(8)]
        if model.low_bit:
            drafts = [replace(draft, is_low_bit=i % 4 > 1) for i, draft in enumerate(drafts)]
        requests = [asked(i, draft, method, samplings[i]) for i, draft in enumerate(drafts)]
        sequences = new_engine(model, 8, confidence).generate(requests)
        assert [sequence.output_ids for sequence in sequences] == plain_texts(model, requests)
        assert sum(sequence.stats.num_drafted for sequence in sequences) > 0


@pytest.mark.parametrize("name", ALL_MODELS)
def test_a_vocabulary_alone_is_a_draft_and_changes_no_text(models: Models, name: str) -> None:
    model = models(name)
    for vocabulary, sampling in zip(VOCABULARIES, SAMPLINGS, strict=False):
        request = asked(1, DraftModel(vocabulary=vocabulary), "skip", sampling)
        (sequence,) = new_engine(model, 1).generate([request])
        assert [sequence.output_ids] == plain_texts(model, [request])
        assert sequence.stats.num_drafted > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["torch", "float32", "bfloat16"])
def test_a_draft_over_all_tokens_is_always_accepted(models: Models, name: str, sampling: str) -> None:
    """In whatever order they are: the noise of a draw is a token's own."""
    model = models(name)
    everything = DraftVocabulary(tuple(random.Random(3).sample(range(262), 262)))
    (sequence,) = new_engine(model, 1).generate([asked(2, DraftModel(vocabulary=everything), "skip", sampling)])
    assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["torch", "float32", "float32 int4"])
def test_a_draft_has_only_tokens_of_vocabulary_prompt_and_answer(
    models: Models, name: str, sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as these are most of the text, where a copy drafts."""
    monkeypatch.setattr(draft_heads, "MOST_MISSES", 1.0)
    model, vocabulary = models(name), VOCABULARIES[2]
    drafted: set[int] = set()
    propose = Speculator.draft

    def recorded(self: Speculator, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        drafts = propose(self, sequences, stats)
        for sequence in sequences:
            ids = drafts[sequence.id].ids if sequence.id in drafts else []
            assert set(ids) <= {*vocabulary.token_ids, *sequence.ids}
            drafted.update(ids)
        return drafts

    monkeypatch.setattr(Speculator, "draft", recorded)
    for method in methods_of(model):
        if method != "cascade":
            new_engine(model, 1).generate([asked(3, DraftModel(MASKS[1], vocabulary), method, sampling)])
    assert drafted & set(vocabulary.token_ids)
    assert drafted - set(vocabulary.token_ids), "the text's own words"


@pytest.mark.parametrize("name", ALL_MODELS)
def test_an_answer_of_a_grammar_is_the_plain_one(models: Models, name: str) -> None:
    """Of some vocabularies the grammar leaves no token now and then, or none but the end."""
    model = models(name)
    for method in methods_of(model):
        requests = []
        for i, sampling in enumerate([*SAMPLINGS, *SAMPLINGS]):
            draft = DraftModel(MASKS[i % 2], VOCABULARIES[i % len(VOCABULARIES)])
            request = asked(i, draft, method, sampling)
            requests.append(replace(request, grammar=ANY_LETTERS, stop=replace(STOP, min_tokens=i)))
        sequences = new_engine(model, 8).generate(requests)
        assert [sequence.output_ids for sequence in sequences] == plain_texts(model, requests)
        assert sum(sequence.stats.num_drafted for sequence in sequences) > 0


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("name", ["torch", "float32"])
@pytest.mark.parametrize(("text", "expected"), [("abac", "ba"), ("acab", ""), ("abab", "bab")])
def test_a_draft_ends_where_the_grammar_leaves_nothing_of_it(
    models: Models, name: str, sampling: str, text: str, expected: str
) -> None:
    """`a` and `b` are of the vocabulary and `c` is not; the other sequence of the batch goes on."""
    draft = DraftModel(MASKS[1], DraftVocabulary((token_of("a"), token_of("b"), token_of("z"))))
    grammar = COMPILER.compile(Grammar.of_lark(f'start: "{text}"'))
    bound = GenerationRequest([1, 3], SAMPLINGS[sampling], STOP, "skip", Route("t", draft), 5, grammar=grammar)
    engine = new_engine(models(name), 2)
    sequences = [engine.add(request) for request in (bound, replace(bound, grammar=None))]
    read_prompts(engine)
    with torch.inference_mode():
        drafts = engine.speculator.drafters["skip"].propose(sequences, 0.0)
    assert drafts[sequences[0].id] == [token_of(letter) for letter in expected]
    assert len(drafts[sequences[1].id]) == 5
    while engine.has_work:
        engine.step()
    assert sequences[0].output_ids == [*(token_of(letter) for letter in text), END]


def token_of(letter: str) -> int:
    token: int = COMPILER.vocabulary.tokenizer.convert_tokens_to_ids(letter)
    return token


def test_a_vocabulary_of_unknown_tokens_is_refused_at_the_first_draft(models: Models) -> None:
    engine = new_engine(models("torch"), 1)
    engine.add(asked(1, DraftModel(vocabulary=DraftVocabulary((5, 262)))))
    with pytest.raises(ValueError, match="the model has tokens 0 to 261, a draft's vocabulary 262"):
        while engine.has_work:
            engine.step()


def test_the_full_model_is_no_draft_of_skip(models: Models) -> None:
    (sequence,) = new_engine(models("float32"), 1).generate([asked(1, DraftModel())])
    assert sequence.stats.num_drafted == 0
