"""What a step does and reports: drafts, baselines, chunks of prompts, seeds and routes."""

from collections import Counter

import pytest

from server.engine import (
    OTHER_DOMAIN,
    UNROUTED,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    Sequence,
    StepStats,
    StopConditions,
    methods,
)
from server.engine.speculation.base import Draft
from server.engine.speculation.speculator import Speculator
from tests.batches import GREEDY, MASK, new_engine, plain_output, prompt, request, run


class OracleSpeculator(Speculator):
    """Drafts what is known to come, beyond the sequence's end too."""

    def __init__(self, engine: Engine, text: list[int]) -> None:
        super().__init__(engine.speculator.drafters.values())
        self.text = text

    def draft(self, sequences: list[Sequence], stats: StepStats) -> dict[int, Draft]:
        return {s.id: Draft(self.text[len(s.output_ids) :][: s.draft_limit], "skip") for s in sequences}


def test_counts_end_at_a_stop_token_inside_an_accepted_draft(model: Decoder) -> None:
    text = plain_output(model, request(prompt(8, 2), 24))
    at = next(i for i in range(2, 5) if text[i] not in text[:i])
    engine = new_engine(model, baseline_share=0)
    engine.speculator = OracleSpeculator(engine, text)
    engine.add(request(prompt(8, 2), 24, frozenset({text[at]})))
    emissions, steps = run(engine)
    assert emissions[-1].token_ids == text[1 : at + 1]
    [row] = steps[-1].rows
    assert (row.num_drafted, row.num_accepted, row.num_emitted) == (at, at, at)
    stats = emissions[-1].sequence.stats
    assert (stats.num_drafts, stats.num_drafted, stats.num_accepted, stats.num_steps) == (1, at, at, 1)
    assert (stats.acceptance, stats.accepted_per_step) == (1.0, Counter({at: 1}))


@pytest.mark.parametrize("share", [1.0, 0.5, 1 / 7])
def test_baseline_steps_happen_at_their_share_and_change_nothing(model: Decoder, share: float) -> None:
    requests = [request(prompt(6 + i, i), 40) for i in range(3)]
    without = new_engine(model, baseline_share=0).generate(requests)
    engine = new_engine(model, baseline_share=share)
    sequences = [engine.add(one) for one in requests]
    _, steps = run(engine)
    assert [s.output_ids for s in sequences] == [s.output_ids for s in without]
    decoded = [stats for stats in steps if stats.rows]
    baselines = [stats for stats in decoded if stats.is_baseline]
    assert len(baselines) == int(len(decoded) * share)
    assert all(row.num_drafted == 0 and row.num_emitted == 1 for stats in baselines for row in stats.rows)
    assert all(stats.draft_seconds == 0 for stats in baselines)


def test_without_a_share_there_are_no_baseline_steps(model: Decoder) -> None:
    engine = new_engine(model, baseline_share=0)
    engine.add(request(prompt(6), 40))
    assert not any(stats.is_baseline for stats in run(engine)[1])


def test_step_statistics_add_up_to_those_of_the_sequences(model: Decoder) -> None:
    engine = new_engine(model, max_batch=3, prefill_chunk=8)
    sequences = [
        engine.add(request(prompt(6 + 3 * i, i), 10 + i, method=m)) for i, m in enumerate([*methods(), *methods()])
    ]
    emissions, steps = run(engine)
    rows = [row for stats in steps for row in stats.rows]
    assert sum(row.num_drafted for row in rows) == sum(s.stats.num_drafted for s in sequences) > 0
    assert sum(row.num_accepted for row in rows) == sum(s.stats.num_accepted for s in sequences)
    assert sum(1 for row in rows if row.num_drafted) == sum(s.stats.num_drafts for s in sequences)
    assert len(rows) == sum(s.stats.num_steps for s in sequences)
    assert sum(row.num_emitted for row in rows) == sum(len(s.output_ids) - 1 for s in sequences)
    assert sum(stats.prefill_tokens for stats in steps) == sum(s.prompt_length for s in sequences)
    assert sum(len(stats.routes) for stats in steps) == len(sequences)
    assert {row.domain for row in rows} == {"test"}
    for sequence in sequences:
        counted = sequence.stats
        assert counted.accepted_per_step.total() == counted.num_drafts
        assert sum(n * times for n, times in counted.accepted_per_step.items()) == counted.num_accepted
        assert len(sequence.output_ids) - 1 == counted.num_steps + counted.num_accepted
    assert len(emissions) == len(rows) + len(sequences)


def test_prompts_are_prefilled_one_chunk_a_step_while_others_decode(model: Decoder) -> None:
    engine = new_engine(model, prefill_chunk=4)
    first = engine.add(request(prompt(4), 60, method="plain"))
    engine.step()
    engine.add(request(prompt(10, 1)))
    chunks = [engine.step()[1].prefill_tokens for _ in range(5)]
    assert chunks == [0, 4, 4, 2, 0], "in the first one nothing is read, to see what decoding alone takes"
    assert len(first.output_ids) == 6


def test_a_seed_gives_the_same_text_alone_and_among_eight(model: Decoder) -> None:
    def requests(seeds: list[int]) -> list[GenerationRequest]:
        return [request(prompt(9), 20, sampling=SamplingParams(1.0, seed=seed)) for seed in seeds]

    seeds = [3, -5, 2**62, 7, 3, 11, 0, 13]
    together = [s.output_ids for s in new_engine(model, 8).generate(requests(seeds))]
    alone = [new_engine(model, 1).generate(requests([seed]))[0].output_ids for seed in seeds]
    assert together == alone
    assert together[0] == together[4]
    assert len({tuple(text) for text in together}) == 7


def test_without_a_seed_every_text_is_another(model: Decoder) -> None:
    sequences = new_engine(model, 8).generate([request(prompt(9), 20, sampling=SamplingParams(1.0))] * 8)
    assert len({tuple(s.output_ids) for s in sequences}) == 8


def test_a_prompts_route_is_the_routers_unless_the_request_brings_one(
    model: Decoder, tiny_artifact: RoutingArtifact
) -> None:
    engine = Engine(model, EngineConfig(max_batch=2), tiny_artifact)
    assert engine.router is not None
    asked = GenerationRequest(prompt(30), GREEDY, StopConditions(4))
    routed, given = engine.generate([asked, request(prompt(30), 4)])
    assert routed.prompt_vector is not None
    assert routed.route == engine.router.route(routed.prompt_vector)
    assert routed.route.domain in ("stories", "sql")
    assert given.route == Route("test", DraftModel(MASK))
    assert engine.max_draft == tiny_artifact.manifest.mixed.draft.max_draft
    chunked = Engine(model, EngineConfig(max_batch=2, prefill_chunk=7), tiny_artifact)
    assert chunked.generate([asked])[0].route.domain == routed.route.domain


def test_below_the_threshold_a_prompt_is_of_no_domain(model: Decoder, tiny_artifact: RoutingArtifact) -> None:
    manifest = tiny_artifact.manifest.model_copy(update={"similarity_threshold": 1.0})
    strict = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {})
    engine = Engine(model, EngineConfig(max_batch=1), strict)
    sequence = engine.generate([GenerationRequest(prompt(30), GREEDY, StopConditions(4))])[0]
    assert sequence.route.domain == OTHER_DOMAIN


def test_without_an_artifact_nothing_is_routed_or_skipped(model: Decoder) -> None:
    engine = Engine(model, EngineConfig(max_batch=1, method="skip"))
    sequence = engine.generate([GenerationRequest(prompt(8), GREEDY, StopConditions(10))])[0]
    assert sequence.route == UNROUTED
    assert sequence.stats.num_drafted == 0
    assert sequence.output_ids == plain_output(model, request(prompt(8), 10))
