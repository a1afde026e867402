"""Draft models with weights, a length and a confidence of their own: who computes a draft, and where it ends."""

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor

from server.engine import (
    FULL_MODEL,
    MAX_DRAFT,
    Decoder,
    DraftModel,
    DraftVocabulary,
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCache,
    Manifest,
    Route,
    RoutingArtifact,
    SamplingParams,
    Sequence,
    SkipMask,
    StepStats,
    StopConditions,
    TokenBatch,
    load_checkpoint,
)
from server.engine.model import kernels
from tests.batches import Models, prompt, read_prompts, run
from tests.tiny import CPU, save_random_model, tiny_config

MASK = SkipMask(frozenset({1}), frozenset({2}))
SAMPLINGS = [SamplingParams(), SamplingParams(0.8, seed=3)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    """The tiny model in torch or with kernels, with another of the same shape for its copy, or without one."""
    folders = [save_random_model(tmp_path_factory.mktemp("tiny"), tiny_config(head_dim=16), seed) for seed in (1, 2)]

    @cache
    def model(name: str) -> Decoder:
        if not name.startswith("torch") and kernels.build() is None:
            pytest.skip("no kernels for this processor")
        with pytest.MonkeyPatch.context() as patch:
            if name.startswith("torch"):
                patch.setattr(kernels, "is_supported", lambda *_: False)
            decoder, copy = (Decoder(load_checkpoint(str(folder), torch.float32, CPU)) for folder in folders)
        decoder.low_bit = None if name.endswith("alone") else copy
        return decoder

    yield model


def asked(
    draft: DraftModel, sampling: SamplingParams = SAMPLINGS[0], max_draft: int | None = None, method: str = "skip"
) -> GenerationRequest:
    return GenerationRequest(prompt(9), sampling, StopConditions(40), method, Route("test", draft), max_draft)


def engine_of(model: Decoder, max_batch: int = 8, artifact: RoutingArtifact | None = None, **config: float) -> Engine:
    return Engine(model, EngineConfig(max_batch, baseline_share=0, is_adaptive=False, **config), artifact)  # type: ignore[arg-type]


def first_drafts(engine: Engine, requests: list[GenerationRequest]) -> list[list[int]]:
    """What is drafted at the first step of each, all in one batch."""
    sequences = [engine.add(request) for request in requests]
    read_prompts(engine)
    with torch.inference_mode():
        drafts = engine.speculator.draft(sequences, StepStats())
    return [drafts[s.id].ids if s.id in drafts else [] for s in sequences]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["torch", "float32"])
def test_a_chain_has_its_draft_models_length_and_confidence(
    models: Models, name: str, sampling: SamplingParams
) -> None:
    engine = engine_of(models(name), max_draft=5, confidence=0.0)
    drafts = [
        DraftModel(MASK),
        DraftModel(MASK, max_draft=2),
        DraftModel(MASK, max_draft=9),
        DraftModel(MASK, max_draft=9, confidence=1.0),
        DraftModel(MASK, confidence=1.0),
        DraftModel(MASK, max_draft=0),
    ]
    found = first_drafts(engine, [asked(draft, sampling) for draft in drafts])
    assert [len(ids) for ids in found] == [5, 2, 9, 1, 1, 0]
    assert found[1] == found[2][:2]


@pytest.mark.parametrize("name", ["torch", "float32"])
def test_a_confidence_of_zero_goes_before_that_of_the_engine(models: Models, name: str) -> None:
    engine = engine_of(models(name), max_draft=5, confidence=1.0)
    drafts = [DraftModel(MASK), DraftModel(MASK, confidence=0.0)]
    assert [len(ids) for ids in first_drafts(engine, [asked(draft) for draft in drafts])] == [1, 5]


@pytest.mark.parametrize("max_draft", [0, 1, 3, MAX_DRAFT])
def test_a_requests_own_length_goes_first(models: Models, max_draft: int) -> None:
    engine = engine_of(models("torch"), max_draft=5, confidence=0.0)
    drafts = [DraftModel(MASK), DraftModel(MASK, max_draft=2), DraftModel(MASK, max_draft=9)]
    found = first_drafts(engine, [asked(draft, max_draft=max_draft) for draft in drafts])
    assert [len(ids) for ids in found] == [max_draft] * 3
    assert {s.longest_draft for s in engine.scheduler.running} == {max_draft}


def test_the_longest_draft_is_that_of_chains_and_of_grown_ones(models: Models) -> None:
    engine = engine_of(models("torch"), max_draft=2)
    first_drafts(engine, [asked(DraftModel(MASK, max_draft=length)) for length in (1, 8, 12)])
    assert [s.longest_draft for s in engine.scheduler.running] == [8, 8, 12]
    assert [s.grown_draft_limit(4) for s in engine.scheduler.running] == [8, 8, 8]


def with_rules(artifact: RoutingArtifact, rules: list[tuple[int, float]]) -> RoutingArtifact:
    """Lengths and confidences of the domains, and last of the mixed one."""
    *domains, mixed = [
        record.model_copy(update={"draft": record.draft.model_copy(update={"max_draft": k, "confidence": c})})
        for record, (k, c) in zip(artifact.manifest.records, rules, strict=True)
    ]
    manifest: Manifest = artifact.manifest.model_copy(update={"domains": domains, "mixed": mixed})
    return RoutingArtifact(manifest, artifact.anchors, artifact.centre, {})


def test_an_engine_takes_the_artifacts_rules_unless_it_has_its_own(
    model: Decoder, tiny_artifact: RoutingArtifact
) -> None:
    artifact = with_rules(tiny_artifact, [(3, 0.0), (25, 1.0), (6, 0.0)])
    for config, lengths, longest in (
        ({}, [3, 1, 6], 25),
        ({"confidence": 0.0}, [3, 25, 6], 25),
        ({"max_draft": 2}, [2, 1, 2], 8),
        ({"max_draft": 4, "confidence": 1.0}, [1, 1, 1], 16),
    ):
        engine = engine_of(model, artifact=artifact, **config)
        assert engine.router is not None
        requests = [
            GenerationRequest(prompt(9), SAMPLINGS[0], StopConditions(40), "skip", route) for route in engine.router.all
        ]
        assert [len(ids) for ids in first_drafts(engine, requests)] == lengths, config
        assert engine.longest_draft == longest
        assert engine.max_draft == config.get("max_draft", 6)


class Passes:
    """Counts the draft passes of a decoder."""

    def __init__(self, decoder: Decoder, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        forward = decoder.forward

        def counted(
            batch: TokenBatch, cache: KVCache, draft: DraftModel = FULL_MODEL, states: Tensor | None = None
        ) -> Tensor:
            self.count += draft is not FULL_MODEL
            return forward(batch, cache, draft, states)

        patch.setattr(decoder, "forward", counted)


def test_low_bit_drafts_are_computed_by_the_copy_and_others_by_the_model(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models("torch")
    assert model.low_bit is not None
    own, copied = Passes(model, monkeypatch), Passes(model.low_bit, monkeypatch)
    engine = engine_of(model, max_draft=3, confidence=0.0)
    first_drafts(engine, [asked(DraftModel(MASK))])
    assert (own.count, copied.count) == (3, 0)
    first_drafts(engine_of(model, max_draft=4, confidence=0.0), [asked(DraftModel(MASK, is_low_bit=True))])
    assert (own.count, copied.count) == (3, 4)
    first_drafts(engine_of(model, max_draft=5, confidence=0.0), [asked(DraftModel(MASK), method="low-bit")])
    assert (own.count, copied.count) == (3, 9)


@pytest.mark.parametrize("vocabulary", [None, DraftVocabulary(tuple(range(262)))], ids=["whole", "listed"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["torch", "float32"])
def test_weights_decide_what_is_drafted_and_not_what_is_written(
    models: Models, name: str, sampling: SamplingParams, vocabulary: DraftVocabulary | None
) -> None:
    """The copy here is another model, so its drafts differ; the model's own with nothing skipped are all accepted."""
    model = models(name)
    drafts = [DraftModel(MASK, vocabulary, is_low_bit) for is_low_bit in (False, True)]
    whole = DraftModel(vocabulary=vocabulary, is_low_bit=True)
    requests = [asked(draft, sampling, 4) for draft in (*drafts, whole)]
    own, copied, wholly = first_drafts(engine_of(model, confidence=0.0), requests)
    assert own != copied
    (low_bit,) = first_drafts(engine_of(model, confidence=0.0), [asked(whole, sampling, 4, "low-bit")])
    assert low_bit == wholly
    plain = engine_of(model, 1).generate([asked(FULL_MODEL, sampling, method="plain")])[0].output_ids
    for method in ("skip", "cascade"):
        asking = [asked(draft, sampling, 4, method) for draft in (*drafts, whole)]
        sequences = engine_of(model, confidence=0.0).generate(asking)
        assert [sequence.output_ids for sequence in sequences] == [plain] * 3
        assert all(sequence.stats.num_drafted for sequence in sequences)


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("name", ["torch alone", "float32 alone"])
def test_without_the_copy_low_bit_drafts_are_none_and_the_text_is_plain(
    models: Models, name: str, is_adaptive: bool
) -> None:
    model = models(name)
    for draft in (DraftModel(is_low_bit=True), DraftModel(MASK, DraftVocabulary((5, 6)), True, 4, 0.0)):
        engine = Engine(model, EngineConfig(2, baseline_share=0, is_adaptive=is_adaptive))
        plain = engine_of(model, 1).generate([asked(FULL_MODEL, method="plain")])[0].output_ids
        sequences: list[Sequence] = [engine.add(asked(draft)), engine.add(asked(DraftModel(MASK)))]
        _, steps = run(engine)
        assert [sequence.output_ids for sequence in sequences] == [plain, plain]
        assert sequences[0].stats.num_drafted == 0
        assert {row.drafter for stats in steps for row in stats.rows} <= {"plain", "skip"}
        assert engine.speculator.options(sequences[0]) == {}


def test_the_cascade_still_copies_where_the_copy_is_missing(models: Models) -> None:
    words = prompt(12)
    request = GenerationRequest(
        [*words, *words], SAMPLINGS[0], StopConditions(30), "cascade", Route("test", DraftModel(is_low_bit=True))
    )
    engine = engine_of(models("torch alone"), 1)
    engine.add(request)
    _, steps = run(engine)
    assert {row.drafter for stats in steps for row in stats.rows if row.num_drafted} <= {"lookup", "suffix"}
