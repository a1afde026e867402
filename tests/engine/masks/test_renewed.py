"""Masks that are chosen from the answer's own states: they leave out what changes nothing, and cost no token."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine import (
    Checkpoint,
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    Sequence,
    SkipMask,
    StopConditions,
    load_checkpoint,
)
from server.engine.masks.base import MASK_SOURCES
from server.engine.masks.costs import PassCosts, best_length
from server.engine.masks.programme import Item, best_ways
from server.engine.masks.rereading import Reader
from server.engine.model import kernels
from server.engine.types import SamplingParams
from tests.batches import prompt
from tests.tiny import CPU, save_random_model, tiny_config

NUM_LAYERS = 8
ONLINE = [name for name, kind in MASK_SOURCES.items() if not kind.needs_artifact]
Idle = Callable[..., Decoder]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    config = tiny_config(num_hidden_layers=NUM_LAYERS, head_dim=16)
    return load_checkpoint(str(save_random_model(tmp_path_factory.mktemp("eight"), config, seed=6)), torch.float32, CPU)


@pytest.fixture(params=["torch", "kernels"])
def idle(request: pytest.FixtureRequest, large: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Idle:
    """The model with some sub-layers that add nothing to what they read."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "is_supported", lambda *_: False)
    elif kernels.build() is None:
        pytest.skip("no kernels for this processor")

    def decoder(attention: set[int], mlp: set[int]) -> Decoder:
        names = [f"model.layers.{i}.self_attn.o_proj.weight" for i in attention]
        names += [f"model.layers.{i}.mlp.down_proj.weight" for i in mlp]
        weights = large.weights | {name: torch.zeros_like(large.weights[name]) for name in names}
        return Decoder(Checkpoint(**{**vars(large), "weights": weights}))

    return decoder


def answer(model: Decoder, method: str, num_tokens: int = 60) -> Sequence:
    engine = Engine(model, EngineConfig(max_batch=1, confidence=0.0, is_adaptive=False, baseline_share=0))
    request = GenerationRequest(prompt(40), SamplingParams(), StopConditions(num_tokens), method)
    return engine.generate([request])[0]


def test_cosine_leaves_out_attention_that_adds_nothing(idle: Idle) -> None:
    mask = answer(idle({0, 2, 5, 7}, set()), "cosine").route.draft.mask
    assert mask == SkipMask(attention=frozenset({2, 5}))


def test_clasp_leaves_out_the_layers_that_add_nothing(idle: Idle) -> None:
    sequence = answer(idle({2, 5}, {2, 5}), "clasp")
    assert sequence.route.draft.mask == SkipMask(frozenset({2, 5}), frozenset({2, 5}))
    assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


def test_knapspec_leaves_out_the_sublayers_that_add_nothing(idle: Idle) -> None:
    sequence = answer(idle({1, 2, 4}, {2, 3, 6}), "knapspec")
    mask = sequence.route.draft.mask
    assert {1, 2, 4} >= mask.attention
    assert {2, 3, 6} == mask.mlp
    assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


def test_knapspec_drafts_nothing_where_nothing_pays(idle: Idle) -> None:
    assert answer(idle(set(), set()), "knapspec").route.draft.mask.num_skipped <= 2


def test_early_exit_stops_where_the_rest_adds_nothing(idle: Idle) -> None:
    rest = set(range(3, NUM_LAYERS))
    sequence = answer(idle(rest, rest), "early-exit")
    assert sequence.route.draft.mask == SkipMask(frozenset(rest), frozenset(rest))
    assert sequence.stats.num_accepted == sequence.stats.num_drafted > 0


def test_swift_ends_with_a_better_mask_than_it_began_with(idle: Idle) -> None:
    """Half of the sub-layers add nothing, the others are those that every other layer leaves out."""
    even = set(range(2, NUM_LAYERS - 1, 2))
    sequence = answer(idle(even, even), "swift", 600)
    first, last = SkipMask(frozenset({1, 3, 5}), frozenset({1, 3, 5})), sequence.route.draft.mask
    useful = [len(mask.attention & even) + len(mask.mlp & even) for mask in (first, last)]
    assert useful[0] < useful[1]


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(0.8, seed=3)], ids=["greedy", "sampled"])
def test_the_text_stays_that_of_plain_decoding_alone_and_together(idle: Idle, sampling: SamplingParams) -> None:
    model = idle({2}, {4})
    names = ["plain", *ONLINE]
    requests = [GenerationRequest(prompt(40), sampling, StopConditions(80), name) for name in names]
    config = EngineConfig(max_batch=len(names), confidence=0.0, is_adaptive=False)
    sequences = Engine(model, config).generate(requests)
    assert all(sequence.output_ids == sequences[0].output_ids for sequence in sequences)
    assert sum(sequence.stats.num_drafted for sequence in sequences) > 0
    for request in requests:
        alone = Engine(model, EngineConfig(max_batch=1, confidence=0.0)).generate([request])[0]
        assert alone.output_ids == sequences[0].output_ids


def test_nothing_is_kept_of_sequences_that_have_ended(idle: Idle) -> None:
    engine = Engine(idle({2}, {4}), EngineConfig(max_batch=3))
    engine.generate([GenerationRequest(prompt(9), SamplingParams(), StopConditions(40), name) for name in ONLINE])
    sources = [engine.mask_sources[name] for name in ONLINE]
    assert not any(getattr(source, part, {}) for source in sources for part in ("waits", "acceptances"))


@torch.inference_mode()
def test_a_programme_without_choice_follows_the_full_model(idle: Idle) -> None:
    model = idle(set(), set())
    ids = prompt(20)
    engine = Engine(model, EngineConfig(max_batch=1))
    engine.generate([GenerationRequest(ids, SamplingParams(), StopConditions(2))])
    reader = Reader(model, engine.cache, 0, 17, ids[17:])
    fixed = [Item(range(n, n + 2), 1, is_fixed=True) for n in range(0, 2 * NUM_LAYERS, 2)]
    ways = best_ways(reader, fixed, 4)
    assert list(ways) == [0]
    torch.testing.assert_close(ways[0].states, reader.trace[-1].float(), atol=1e-4, rtol=1e-4)


@given(st.floats(0, 1), st.floats(0.01, 1), st.integers(0, 12))
def test_the_best_length_is_the_best_of_all(acceptance: float, cost: float, longest: int) -> None:
    rate, length = best_length(acceptance, cost, longest)

    def formula(d: int) -> float:
        return sum(acceptance**i for i in range(d + 1)) / (cost * d + 1)

    assert rate == pytest.approx(formula(length))
    assert rate == pytest.approx(max(formula(d) for d in range(longest + 1)))


def test_costs_are_shares_of_a_full_pass(idle: Idle) -> None:
    model = idle(set(), set())
    costs, everything = PassCosts.of(model, 100), frozenset(range(NUM_LAYERS))
    assert costs.share(SkipMask()) == 1
    assert costs.share(SkipMask(everything, everything)) == pytest.approx(costs.head / costs.whole)
    assert PassCosts.of(model, 500).attention > costs.attention
    assert PassCosts.of(model, 500).mlp == costs.mlp
