"""The engine's bookkeeping: slots, ends, cancelling, statistics and seeds."""

import random
from collections import Counter

import pytest

from server.engine import (
    OTHER_DOMAIN,
    UNROUTED,
    Decoder,
    Emission,
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    Method,
    PromptTooLongError,
    Route,
    RoutingArtifact,
    SamplingParams,
    Sequence,
    SkipMask,
    StepStats,
    StopConditions,
)
from server.engine.drafting import Draft, MethodDrafter

MASK = SkipMask(frozenset({1, 3}), frozenset({2}))
GREEDY = SamplingParams()


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [1, *(rng.randrange(6, 262) for _ in range(length - 1))]


def request(
    prompt_ids: list[int],
    max_tokens: int = 12,
    stop: frozenset[int] = frozenset(),
    sampling: SamplingParams = GREEDY,
    method: Method = Method.SKIP,
) -> GenerationRequest:
    stops = StopConditions(max_tokens, stop)
    return GenerationRequest(prompt_ids, sampling, stops, method=method, route=Route("test", MASK), max_draft=4)


def new_engine(model: Decoder, max_batch: int = 4, **config: float) -> Engine:
    return Engine(model, EngineConfig(**{"max_batch": max_batch, "confidence": 0.0, "is_adaptive": False, **config}))  # type: ignore[arg-type]


def plain_output(model: Decoder, one: GenerationRequest) -> list[int]:
    stops = StopConditions(one.stop.max_tokens)
    plain = GenerationRequest(one.prompt_ids, one.sampling, stops, method=Method.PLAIN)
    return new_engine(model, 1).generate([plain])[0].output_ids


def run(engine: Engine) -> tuple[list[Emission], list[StepStats]]:
    """Steps until nothing is left."""
    emissions, steps = [], []
    while engine.has_work:
        new, stats = engine.step()
        emissions += new
        steps.append(stats)
    return emissions, steps


def assert_idle(engine: Engine) -> None:
    assert (engine.has_work, engine.num_running, engine.num_waiting) == (False, 0, 0)
    assert sorted(engine.free_slots) == list(range(engine.config.max_batch))
    assert not engine.drafter.lookup.indexes
    assert engine.drafter.policy is None or not engine.drafter.policy.gains


class OracleDrafter(MethodDrafter):
    """Drafts what is known to come, beyond the sequence's end too."""

    def __init__(self, engine: Engine, text: list[int]) -> None:
        super().__init__(engine.drafter.skip, engine.drafter.lookup)
        self.text = text

    def draft(self, sequences: list[Sequence]) -> dict[int, Draft]:
        return {s.id: Draft(self.text[len(s.output_ids) :][: s.draft_limit], Method.SKIP) for s in sequences}


@pytest.mark.parametrize("num_steps", [0, 2, 5], ids=["waiting", "prefilling", "decoding"])
def test_a_cancelled_sequence_frees_its_place_and_changes_nothing_for_others(model: Decoder, num_steps: int) -> None:
    engine = new_engine(model, max_batch=2, prefill_chunk=8)
    if num_steps == 0:
        others = [engine.add(request(prompt(5, seed), 30)) for seed in (1, 2)]
        engine.step()
        victim = engine.add(request(prompt(6)))
        next_one = engine.add(request(prompt(7, 3)))
        expected = (2, 1)
    else:
        others = [engine.add(request(prompt(5, 1), 30))]
        victim = engine.add(request(prompt(24), 60))
        next_one = engine.add(request(prompt(7, 3)))
        for _ in range(num_steps):
            engine.step()
        assert victim.is_prefilled == (num_steps == 5)
        expected = (1, 1)
    engine.cancel(victim)
    assert victim.finish_reason == FinishReason.CANCELLED
    assert (engine.num_running, engine.num_waiting) == expected
    length = len(victim.ids)
    engine.step()
    if num_steps:
        assert next_one.slot >= 0
    emissions, _ = run(engine)
    assert all(emission.sequence is not victim for emission in emissions)
    assert len(victim.ids) == length
    for sequence in [*others, next_one]:
        assert sequence.output_ids == plain_output(model, sequence.request)
    assert_idle(engine)


def test_cancelling_twice_or_after_the_end_does_nothing(model: Decoder) -> None:
    engine = new_engine(model)
    done, cancelled = engine.add(request(prompt(4), 1)), engine.add(request(prompt(5)))
    engine.cancel(cancelled)
    engine.cancel(cancelled)
    run(engine)
    engine.cancel(done)
    assert done.finish_reason == FinishReason.LENGTH
    assert_idle(engine)


def test_more_requests_than_slots_are_served_in_order(model: Decoder) -> None:
    engine = new_engine(model, max_batch=3)
    sequences = [engine.add(request(prompt(4 + i, i), 5 + i)) for i in range(10)]
    started: list[Sequence] = []
    most = 0
    while engine.has_work:
        emissions, stats = engine.step()
        started += [e.sequence for e in emissions if e.sequence not in started]
        most = max(most, stats.num_running)
        assert engine.num_running <= 3
    assert started == sequences
    assert most == 3
    for sequence in sequences:
        assert sequence.output_ids == plain_output(model, sequence.request)
    assert_idle(engine)


def test_emissions_joined_are_the_output_and_the_last_one_ends_it(model: Decoder) -> None:
    engine = new_engine(model)
    sequences = [engine.add(request(prompt(5 + i, i), 9)) for i in range(4)]
    emissions, _ = run(engine)
    for sequence in sequences:
        mine = [e for e in emissions if e.sequence is sequence]
        assert [token for e in mine for token in e.token_ids] == sequence.output_ids
        assert [e.finish_reason for e in mine] == [None] * (len(mine) - 1) + [FinishReason.LENGTH]


def test_a_prompt_that_leaves_no_room_is_refused_with_both_lengths(model: Decoder) -> None:
    engine = new_engine(model, max_length=16)
    with pytest.raises(PromptTooLongError, match="16 tokens, the context holds 16") as caught:
        engine.add(request(prompt(16)))
    assert (caught.value.prompt_length, caught.value.max_length) == (16, 16)
    assert not engine.has_work
    assert engine.generate([request(prompt(15))])[0].finish_reason == FinishReason.LENGTH


def test_the_limit_is_at_most_the_models(model: Decoder) -> None:
    assert new_engine(model, max_length=10_000).max_length == model.config.max_length
    assert Engine(model, EngineConfig(max_batch=1)).max_length == model.config.max_length


@pytest.mark.parametrize("method", Method)
def test_the_end_of_the_context_ends_the_text(model: Decoder, method: Method) -> None:
    engine = new_engine(model, max_length=32)
    sequence = engine.generate([request(prompt(20), 500, method=method)])[0]
    assert sequence.finish_reason == FinishReason.LENGTH
    assert len(sequence.ids) == 32
    assert sequence.output_ids == plain_output(model, request(prompt(20), 12))


@pytest.mark.parametrize("method", Method)
def test_one_token_comes_with_the_prompt(model: Decoder, method: Method) -> None:
    engine = new_engine(model)
    [emission], stats = (engine.add(request(prompt(6), 1, method=method)), engine.step())[1]
    assert (len(emission.token_ids), emission.finish_reason) == (1, FinishReason.LENGTH)
    assert (stats.prefill_tokens, stats.rows, stats.num_running) == (6, [], 0)
    assert_idle(engine)


def test_a_stop_token_as_the_first_token_ends_the_text(model: Decoder) -> None:
    first = plain_output(model, request(prompt(6)))[0]
    sequence = new_engine(model).generate([request(prompt(6), stop=frozenset({first}))])[0]
    assert (sequence.output_ids, sequence.finish_reason) == ([first], FinishReason.STOP)
    assert sequence.stats.num_steps == 0


@pytest.mark.parametrize("method", Method)
def test_a_stop_token_ends_the_text_wherever_it_comes(model: Decoder, method: Method) -> None:
    text = plain_output(model, request(prompt(8, 2), 24))
    for token in set(text):
        engine = new_engine(model)
        sequence = engine.generate([request(prompt(8, 2), 24, frozenset({token}), method=method)])[0]
        assert sequence.output_ids == text[: text.index(token) + 1]
        assert sequence.finish_reason == FinishReason.STOP
        assert_idle(engine)


def test_counts_end_at_a_stop_token_inside_an_accepted_draft(model: Decoder) -> None:
    text = plain_output(model, request(prompt(8, 2), 24))
    at = next(i for i in range(2, 5) if text[i] not in text[:i])
    engine = new_engine(model, baseline_share=0)
    engine.drafter = OracleDrafter(engine, text)
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
    sequences = [engine.add(request(prompt(6 + 3 * i, i), 10 + i, method=m)) for i, m in enumerate([*Method, *Method])]
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
    engine = new_engine(model, prefill_chunk=8)
    first = engine.add(request(prompt(4), 60, method=Method.PLAIN))
    engine.step()
    engine.add(request(prompt(20, 1)))
    chunks = [engine.step()[1].prefill_tokens for _ in range(4)]
    assert chunks == [8, 8, 4, 0]
    assert len(first.output_ids) == 5


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
    assert given.route == Route("test", MASK)
    assert engine.max_draft == tiny_artifact.manifest.max_draft
    chunked = Engine(model, EngineConfig(max_batch=2, prefill_chunk=7), tiny_artifact)
    assert chunked.generate([asked])[0].route.domain == routed.route.domain


def test_below_the_threshold_a_prompt_is_of_no_domain(model: Decoder, tiny_artifact: RoutingArtifact) -> None:
    manifest = tiny_artifact.manifest.model_copy(update={"similarity_threshold": 1.0})
    strict = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre)
    engine = Engine(model, EngineConfig(max_batch=1), strict)
    sequence = engine.generate([GenerationRequest(prompt(30), GREEDY, StopConditions(4))])[0]
    assert sequence.route.domain == OTHER_DOMAIN


def test_without_an_artifact_nothing_is_routed_or_skipped(model: Decoder) -> None:
    engine = Engine(model, EngineConfig(max_batch=1, method=Method.SKIP))
    sequence = engine.generate([GenerationRequest(prompt(8), GREEDY, StopConditions(10))])[0]
    assert sequence.route == UNROUTED
    assert sequence.stats.num_drafted == 0
    assert sequence.output_ids == plain_output(model, request(prompt(8), 10))


def test_five_hundred_requests_leave_nothing_behind(model: Decoder) -> None:
    rng = random.Random(0)
    engine = new_engine(model, max_batch=8)
    for i in range(500):
        sequence = engine.add(
            request(prompt(rng.randrange(2, 8), i), rng.randrange(1, 4), method=rng.choice(list(Method)))
        )
        if rng.random() < 0.3:
            engine.step()
        if rng.random() < 0.4:
            engine.cancel(sequence)
    run(engine)
    assert_idle(engine)
    assert not engine.waiting and not engine.running
