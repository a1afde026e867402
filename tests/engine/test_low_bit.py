"""Drafts of a low-bit copy, and models of few bits: whatever is drafted, the text is that of plain decoding."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type

from server.engine import (
    Activations,
    Adjustments,
    Decoder,
    DraftModel,
    DraftWeights,
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    Quantization,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StopConditions,
    add_draft,
    load_checkpoint,
)
from server.engine.model import kernels
from tests.gguf_files import wide_config, write_gguf
from tests.tiny import CPU, save_random_model

pytestmark = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")

TYPES = [Type.Q4_1, Type.Q5_0, Type.Q8_0, Type.Q4_K, Type.Q6_K]
MODELS = ["float32", "bfloat16", *(f"{kind.name} {each}" for kind in TYPES for each in ("int8", "fine", "exact"))]
METHODS = ["plain", "lookup", "skip", "low-bit", "cascade"]
MASKS = [SkipMask(), SkipMask(frozenset({1})), SkipMask(frozenset({0}), frozenset({2})), SkipMask(mlp=frozenset({1}))]
GREEDY, SAMPLED = SamplingParams(), SamplingParams(0.8, top_p=0.95, seed=5)
NEW_TOKENS = 24

Models = Callable[[str, DraftWeights], Decoder]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = wide_config(num_hidden_layers=3, head_dim=64)
    return save_random_model(tmp_path_factory.mktemp("model"), config, seed=2)


@pytest.fixture(scope="module")
def models(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Models by their name among `MODELS`, with a copy to draft with; each is loaded once."""
    files = tmp_path_factory.mktemp("files")

    @cache
    def model(name: str, choice: DraftWeights) -> Decoder:
        return decoder_of(name, choice, folder, files)

    return model


def decoder_of(name: str, choice: DraftWeights, folder: Path, files: Path) -> Decoder:
    """The model of `folder` in a dtype, or with its weights as a type of GGUF, which is written once to `files`."""
    kind, _, activations = name.partition(" ")
    path, dtype = folder, torch.bfloat16
    if activations:
        path = files / f"{kind}.gguf"
        if not path.exists():
            write_gguf(path, folder, Type[kind])
    else:
        dtype = getattr(torch, kind)
    checkpoint = load_checkpoint(str(path), dtype, CPU, quantization="auto")
    kinds: dict[str, Activations] = {"int8": "int8", "fine": "fine", "exact": "exact"}
    decoder = Decoder(checkpoint, kinds.get(activations, "auto"))
    add_draft(decoder, checkpoint, choice)
    return decoder


def asked(
    number: int, method: str, mask: SkipMask, sampling: SamplingParams, is_low_bit: bool = False
) -> GenerationRequest:
    """A prompt that says everything twice, so that lookup finds something, and a length of its own."""
    words = torch.randint(6, 260, (4 + 3 * number,), generator=torch.Generator().manual_seed(number)).tolist()
    stops = StopConditions(NEW_TOKENS, frozenset({2}))
    route = Route("test", DraftModel(mask, is_low_bit=is_low_bit))
    return GenerationRequest([1, *words, *words], sampling, stops, method=method, route=route, max_draft=5)


def run(
    model: Decoder, requests: list[GenerationRequest], confidence: float = 0.0, is_adaptive: bool = False
) -> list[Sequence]:
    config = EngineConfig(max_batch=len(requests), confidence=confidence, is_adaptive=is_adaptive)
    return Engine(model, config).generate(requests)


def plain_texts(model: Decoder, requests: list[GenerationRequest]) -> list[list[int]]:
    """Each alone, without drafts."""
    return [run(model, [replace(request, method="plain")])[0].output_ids for request in requests]


@pytest.mark.parametrize("choice", ["int4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_every_method_writes_the_plain_text_alone(models: Models, name: str, choice: DraftWeights) -> None:
    model = models(name, choice)
    for number, sampling in enumerate((GREEDY, SAMPLED)):
        requests = [asked(number, method, MASKS[2], sampling) for method in METHODS]
        requests.append(asked(number, "skip", MASKS[2], sampling, is_low_bit=True))
        (expected, *others) = plain_texts(model, requests)
        assert all(other == expected for other in others)
        for confidence in (0.0, 0.5):
            for request in requests:
                (sequence,) = run(model, [request], confidence)
                assert sequence.output_ids == expected, (request.method, confidence)


@pytest.mark.parametrize("is_adaptive", [False, True])
@pytest.mark.parametrize("choice", ["int4", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_eight_requests_of_different_methods_and_masks_share_a_batch(
    models: Models, name: str, choice: DraftWeights, is_adaptive: bool
) -> None:
    model = models(name, choice)
    methods = ["low-bit", "skip", "cascade", "plain", "lookup", "low-bit", "cascade", "skip"]
    samplings = [GREEDY, SAMPLED, GREEDY, SAMPLED, GREEDY, SAMPLED, SAMPLED, GREEDY]
    requests = [
        asked(i, method, MASKS[i % len(MASKS)], sampling, is_low_bit=i > 3)
        for i, (method, sampling) in enumerate(zip(methods, samplings, strict=True))
    ]
    expected = plain_texts(model, requests)
    for confidence in (0.0, 0.5):
        sequences = run(model, requests, confidence, is_adaptive=is_adaptive)
        assert [sequence.output_ids for sequence in sequences] == expected
        assert sum(sequence.stats.num_drafted for sequence in sequences) > 0


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads of decoders that are made; it is as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "Q4_1 int8", "Q4_K fine"])
def test_any_number_of_threads_writes_the_same_text(
    name: str, threads: Callable[[int], None], folder: Path, tmp_path: Path
) -> None:
    requests = [asked(i, method, MASKS[2], SAMPLED) for i, method in enumerate(METHODS)]
    texts = []
    for num_threads in (1, 2, 5):
        threads(num_threads)
        model = decoder_of(name, "int4", folder, tmp_path)
        texts.append(plain_texts(model, requests))
        texts.append([sequence.output_ids for sequence in run(model, requests)])
    assert all(text == texts[0] for text in texts)


def acceptance(model: Decoder, sampling: SamplingParams) -> float:
    sequences = run(model, [asked(i, "low-bit", SkipMask(), sampling) for i in range(8)])
    return sum(s.stats.num_accepted for s in sequences) / sum(s.stats.num_drafted for s in sequences)


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_copy_agrees_more_often_the_more_bits_it_has(models: Models, name: str, sampling: SamplingParams) -> None:
    """Random weights are hard to round: where 4 bits of them agree in a fifth, those of a trained model do in 0.9."""
    four, eight = acceptance(models(name, "int4"), sampling), acceptance(models(name, "int8"), sampling)
    assert 0.05 < four < 0.6 < eight < 1


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_copy_that_is_the_model_is_always_accepted(models: Models, sampling: SamplingParams) -> None:
    """Eight bits rounded to eight are the same: nothing but the weights tells a draft from the model."""
    model = models("Q8_0 int8", "int8")
    for sequence in run(model, [asked(i, "low-bit", SkipMask(), sampling) for i in range(8)]):
        assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


@pytest.mark.parametrize("name", MODELS[2:])
def test_a_file_at_its_bits_writes_what_its_dequantised_model_writes(
    models: Models, name: str, folder: Path, tmp_path: Path
) -> None:
    """In float32, where activations are exact."""
    write_gguf(tmp_path / "model.gguf", folder, Type[name.split()[0]])
    requests = [asked(i, "plain", SkipMask(), sampling) for i, sampling in enumerate((GREEDY, SAMPLED) * 3)]
    texts = []
    both: tuple[Quantization, ...] = ("auto", "none")
    for quantization in both:
        checkpoint = load_checkpoint(str(tmp_path / "model.gguf"), torch.float32, CPU, quantization=quantization)
        texts.append([sequence.output_ids for sequence in run(Decoder(checkpoint), requests)])
    assert texts[0] == texts[1]


def test_the_method_that_a_copy_serves_is_known(models: Models, folder: Path) -> None:
    engine = Engine(models("float32", "int4"), EngineConfig(max_batch=1))
    assert {name for name in METHODS if engine.lacks(name)} == {"skip"}
    assert "low-bit" in engine.speculator.drafters
    without = Engine(Decoder(load_checkpoint(str(folder), None, CPU)), EngineConfig(max_batch=1))
    assert without.lacks("low-bit") == "draft weights"
    assert "low-bit" not in without.speculator.drafters


def test_the_cascade_skips_where_there_is_a_mask_and_else_takes_the_whole_copy(models: Models) -> None:
    model = models("bfloat16", "int4")
    engine = Engine(model, EngineConfig(max_batch=2, confidence=0.0, is_adaptive=False, baseline_share=0))
    words = [9, 70, 30, 200, 110]
    requests = [replace(asked(0, "cascade", mask, GREEDY), prompt_ids=words) for mask in MASKS[:2]]
    sequences = [engine.add(request) for request in requests]
    origins: dict[int, set[str]] = {}
    while engine.has_work:
        running = [s for s in engine.scheduler.running if s.is_prefilled]
        _, stats = engine.step()
        for sequence, row in zip(running, stats.rows, strict=False):
            origins.setdefault(sequence.id, set()).add(row.drafter)
    assert [origins[sequence.id] - {"lookup", "suffix", "plain"} for sequence in sequences] == [{"low-bit"}, {"skip"}]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_stop_token_and_the_end_of_the_context_end_the_text(models: Models, sampling: SamplingParams) -> None:
    model = models("bfloat16", "int4")
    request = replace(asked(1, "low-bit", SkipMask(), sampling), stop=StopConditions(NEW_TOKENS))
    (text,) = plain_texts(model, [request])
    for token in set(text):
        (sequence,) = run(model, [replace(request, stop=StopConditions(NEW_TOKENS, frozenset({token})))])
        assert sequence.output_ids == text[: text.index(token) + 1]
        assert sequence.finish_reason == FinishReason.STOP
    length = len(request.prompt_ids) + 10
    engine = Engine(model, EngineConfig(max_batch=1, max_length=length, confidence=0.0, is_adaptive=False))
    (sequence,) = engine.generate([replace(request, stop=StopConditions(500))])
    assert (sequence.output_ids, sequence.finish_reason) == (text[:10], FinishReason.LENGTH)


@pytest.mark.parametrize("name", ["float32", "Q4_1 int8"])
def test_adjusted_logits_and_log_probabilities_are_those_of_plain_decoding(models: Models, name: str) -> None:
    model = models(name, "int8")
    adjustments = Adjustments(logit_bias=((40, 3.0),), repetition_penalty=1.2, presence_penalty=0.5)
    for sampling in (GREEDY, SAMPLED):
        sampling = replace(sampling, adjustments=adjustments)
        request = replace(asked(2, "low-bit", SkipMask(), sampling), num_logprobs=3)
        scores, steps = [], []
        for one in (request, replace(request, method="plain")):
            engine = Engine(model, EngineConfig(max_batch=1, confidence=0.0, is_adaptive=False))
            sequence = engine.add(one)
            emissions = []
            while engine.has_work:
                emissions += engine.step()[0]
            scores.append((sequence.output_ids, [score for emission in emissions for score in emission.logprobs]))
            steps.append(len(emissions))
        assert scores[0] == scores[1]
        assert steps[0] < steps[1]


def test_a_cancelled_draft_leaves_nothing_behind(models: Models) -> None:
    model = models("Q4_K int8", "int8")
    requests = [asked(i, "low-bit", SkipMask(), GREEDY) for i in range(3)]
    expected = plain_texts(model, requests)
    engine = Engine(model, EngineConfig(max_batch=2, confidence=0.0, is_adaptive=False))
    first, second, third = [engine.add(request) for request in requests]
    while not (second.is_prefilled and len(second.output_ids) > 3):
        engine.step()
    engine.cancel(second)
    while engine.has_work:
        engine.step()
    assert [first.output_ids, third.output_ids] == [expected[0], expected[2]]
    assert sorted(engine.scheduler.free_slots) == [0, 1]
