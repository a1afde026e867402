"""Sampled texts follow the model's exact law, for every method and every way to cut the distribution."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare

from server.engine import (
    Adjustments,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    SamplingParams,
    Sequence,
    SkipMask,
    StopConditions,
    TokenBatch,
    add_draft,
    load_checkpoint,
)
from server.engine.masks.base import MASK_SOURCES
from server.engine.model import kernels
from server.engine.sampling.distribution import probabilities
from server.engine.speculation.base import methods
from server.engine.speculation.verification import Verification
from tests.tiny import CPU, save_random_model, tiny_config, torch_decoder

SIZE, LENGTH, DRAWS = 5, 3, 1000
"""So few tokens that each text of three is drawn often enough to count."""
CUTS = [
    SamplingParams(1.0),
    SamplingParams(0.5),
    SamplingParams(2.0),
    SamplingParams(2.0, top_k=3),
    SamplingParams(3.0, top_p=0.7),
    SamplingParams(3.0, min_p=0.3),
    SamplingParams(3.0, top_k=4, top_p=0.9, min_p=0.1),
    SamplingParams(1.0, adjustments=Adjustments(logit_bias=((2, 1.0),))),
]
MASK = SkipMask(frozenset({0, 2}), frozenset({1}))
Law = NDArray[np.float64]
Models = Callable[[str], Decoder]
Laws = Callable[[str, SamplingParams], Law]


def every_trigram() -> list[int]:
    """A prompt in which each three tokens stand somewhere, so that looking up always finds what to copy."""
    ids, seen = [1] * LENGTH, {(1,) * LENGTH}
    # Martin's algorithm for de Bruijn sequences: the highest token that makes a new trigram.
    while new := [t for t in reversed(range(SIZE)) if (*ids[-2:], t) not in seen]:
        ids.append(new[0])
        seen.add(tuple(ids[-LENGTH:]))
    return ids


PROMPT = every_trigram()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A model of five tokens: in torch, or in 8 bits by the kernels with a copy in 4."""
    config = tiny_config(vocab_size=SIZE, head_dim=16, eos_token_id=4)
    folder = save_random_model(tmp_path_factory.mktemp("five"), config, seed=4)

    @cache
    def model(name: str) -> Decoder:
        if name == "torch":
            return torch_decoder(folder)
        if kernels.build() is None:
            pytest.skip("no kernels for this processor")
        checkpoint = load_checkpoint(str(folder), torch.bfloat16, CPU, quantization="int8")
        decoder = Decoder(checkpoint)
        add_draft(decoder, checkpoint, "int4")
        return decoder

    return model


@pytest.fixture(scope="module")
def laws(models: Models) -> Laws:
    """The exact probability [token, token, token] of each text, from full passes over all of them."""

    @cache
    def logits(name: str) -> dict[tuple[int, ...], torch.Tensor]:
        model = models(name)
        with torch.inference_mode():
            beginnings = [b for n in range(LENGTH) for b in itertools.product(range(SIZE), repeat=n)]
            return {beginning: last_logits(model, [*PROMPT, *beginning]) for beginning in beginnings}

    def law(name: str, cut: SamplingParams) -> Law:
        bias = torch.zeros(SIZE)
        for token, added in cut.adjustments.logit_bias:
            bias[token] = added
        shares = {b: probabilities(row + bias, cut)[0].double().numpy() for b, row in logits(name).items()}
        texts = itertools.product(range(SIZE), repeat=LENGTH)
        cells = [np.prod([shares[text[:n]][text[n]] for n in range(LENGTH)]) for text in texts]
        return np.array(cells).reshape((SIZE,) * LENGTH)

    return law


def last_logits(model: Decoder, ids: list[int]) -> torch.Tensor:
    tokens = model.new_cache(1, 256)
    return model.logits(model.forward(TokenBatch([(0, 0, ids)], tokens), tokens)[-1:])


def texts_of(model: Decoder, method: str, cut: SamplingParams) -> list[Sequence]:
    config = EngineConfig(max_batch=32, confidence=0.0, baseline_share=0, is_adaptive=False)
    chooses_itself = method in MASK_SOURCES and not MASK_SOURCES[method].needs_artifact
    route = None if chooses_itself else Route("t", DraftModel(MASK))
    samplings = [replace(cut, seed=seed) for seed in range(DRAWS)]
    requests = [
        GenerationRequest(PROMPT, sampling, StopConditions(LENGTH), method=method, route=route, max_draft=LENGTH)
        for sampling in samplings
    ]
    sequences = Engine(model, config).generate(requests)
    assert method == "plain" or chooses_itself or sum(sequence.stats.num_drafted for sequence in sequences) > 0
    return sequences


def p_value(sequences: list[Sequence], law: Law) -> float:
    """Of a chi-square test; rare texts count as one, and one that is impossible settles it."""
    counts = np.zeros_like(law)
    for sequence in sequences:
        counts[tuple(sequence.output_ids)] += 1
    if counts[law == 0].any():
        return 0.0
    order = np.argsort(law, axis=None)
    counted, expected = counts.flat[order], law.flat[order] * len(sequences)
    num_rare = max(int((expected < 5).sum()), int(np.searchsorted(expected.cumsum(), 5)) + 1)
    counted, expected = (np.array([cells[:num_rare].sum(), *cells[num_rare:]]) for cells in (counted, expected))
    assert len(counted) > 2
    return float(chisquare(counted, expected * counted.sum() / expected.sum()).pvalue)


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("method", methods())
def test_every_method_draws_from_the_exact_law(models: Models, laws: Laws, method: str, cut: SamplingParams) -> None:
    assert p_value(texts_of(models("copy"), method, cut), laws("copy", cut)) > 1e-4


def test_so_it_does_without_kernels(models: Models, laws: Laws) -> None:
    """Torch draws as the kernels do at every cut (tests/engine/sampling/test_draws.py)."""
    assert p_value(texts_of(models("torch"), "skip", CUTS[-2]), laws("torch", CUTS[-2])) > 1e-4


@pytest.mark.parametrize("method", ["skip", "lookup", "suffix", "cascade"])
def test_a_check_that_accepts_everything_is_noticed(
    models: Models, laws: Laws, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts of the copy agree too often here to tell; tests/engine/sampling/test_distribution.py breaks theirs."""

    def accept_all(drafted: list[int], own: list[int], stop: frozenset[int], room: int) -> Verification:
        return Verification([*drafted, own[-1]][:room], len(drafted), len(drafted))

    monkeypatch.setattr("server.engine.engine.verify", accept_all)
    assert p_value(texts_of(models("copy"), method, CUTS[0]), laws("copy", CUTS[0])) < 1e-6
