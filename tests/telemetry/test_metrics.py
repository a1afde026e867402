"""Exact values of the metrics that Prometheus reads."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine import (
    FULL_MODEL,
    OTHER_DOMAIN,
    UNROUTED,
    Checkpoint,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    FinishReason,
    Route,
    RoutingArtifact,
    RowStats,
    SequenceStats,
    SkipMask,
    StepStats,
    TextCodec,
)
from server.engine.model import kernels
from server.generation import Outcome
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import FailureReason

OUTCOME = Outcome(FinishReason.STOP, 3, 5, UNROUTED, "plain", 4, SequenceStats(), 0.25, 0.5, 1.0)


def watch(metrics: Metrics, checkpoint: Checkpoint, artifact: RoutingArtifact | None) -> Engine:
    engine = Engine(Decoder(checkpoint), EngineConfig(), artifact)
    metrics.watch(ServedModel("tiny", checkpoint, TextCodec(checkpoint.tokenizer), engine))
    return engine


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and label values."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def test_a_step_is_counted_by_domain_and_position() -> None:
    metrics = Metrics()
    rows = [RowStats("sql", 4, 2, 3), RowStats("sql", 3, 0, 1), RowStats("sql", 0, 0, 1), RowStats("chat", 2, 2, 3)]
    metrics.observe_step(StepStats(prefill_tokens=7, prefill_seconds=2, draft_seconds=3, verify_seconds=4, rows=rows))
    values = samples(metrics)
    prefix = "knnssd_spec_decode_num_"
    assert values[prefix + "drafts_total", ("sql",)] == 2
    assert values[prefix + "draft_tokens_total", ("sql",)] == 7
    assert values[prefix + "accepted_tokens_total", ("sql",)] == 2
    assert values[prefix + "accepted_tokens_total", ("chat",)] == 2
    assert values[prefix + "accepted_tokens_per_pos_total", ("sql", "0")] == 1
    assert values[prefix + "accepted_tokens_per_pos_total", ("sql", "1")] == 1
    assert (prefix + "accepted_tokens_per_pos_total", ("sql", "2")) not in values
    assert values["knnssd_prompt_tokens_total", ()] == 7
    assert [values[f"knnssd_{part}_seconds_total", ()] for part in ("prefill", "draft", "verify")] == [2, 3, 4]


def test_routes_similarities_and_fallbacks() -> None:
    metrics = Metrics()
    draft = DraftModel(SkipMask(frozenset({1})))
    routes = [
        Route("sql", draft, 0.8),
        Route(OTHER_DOMAIN, draft, 0.05),
        Route(OTHER_DOMAIN, draft),
        Route("chat", FULL_MODEL),
    ]
    metrics.observe_step(StepStats(routes=routes))
    values = samples(metrics)
    assert values["knnssd_routes_total", ("sql",)] == 1
    assert values["knnssd_routes_total", (OTHER_DOMAIN,)] == 2
    assert values["knnssd_fallbacks_total", ("out_of_domain",)] == 1
    assert values["knnssd_fallbacks_total", ("empty_mask",)] == 1
    assert values["knnssd_fallbacks_total", ("no_artifact",)] == 0
    assert values["knnssd_route_similarity_bucket", ("sql", "0.7")] == 0
    assert values["knnssd_route_similarity_bucket", ("sql", "0.8")] == 1
    assert values["knnssd_route_similarity_count", (OTHER_DOMAIN,)] == 1


def test_a_low_bit_draft_is_a_fallback_only_where_there_is_no_copy(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact
) -> None:
    routes = [Route("sql", DraftModel(is_low_bit=True), 0.8), Route(OTHER_DOMAIN, DraftModel(is_low_bit=True), 0.1)]
    for has_copy, expected in ((False, (2, 0)), (True, (0, 1))):
        metrics = Metrics()
        engine = Engine(Decoder(checkpoint), EngineConfig(), tiny_artifact)
        engine.model.low_bit = Decoder(checkpoint) if has_copy else None
        metrics.watch(ServedModel("tiny", checkpoint, TextCodec(checkpoint.tokenizer), engine))
        metrics.observe_step(StepStats(routes=routes))
        values = samples(metrics)
        reasons = [values["knnssd_fallbacks_total", (reason,)] for reason in ("no_draft_weights", "out_of_domain")]
        assert tuple(reasons) == expected


def test_tokens_that_come_together_share_their_time() -> None:
    metrics = Metrics()
    metrics.observe_first_token(0.5)
    metrics.observe_further_tokens(4, 0.2)
    values = samples(metrics)
    assert values["knnssd_generation_tokens_total", ()] == 5
    assert values["knnssd_inter_token_latency_seconds_count", ()] == 4
    assert values["knnssd_inter_token_latency_seconds_sum", ()] == pytest.approx(0.2)
    assert values["knnssd_time_to_first_token_seconds_sum", ()] == 0.5


def test_endings_and_refusals() -> None:
    metrics = Metrics()
    metrics.observe_outcome(OUTCOME, 2.0)
    metrics.observe_cancelled()
    metrics.observe_rejection(FailureReason.QUEUE_FULL)
    values = samples(metrics)
    assert values["knnssd_request_success_total", ("stop",)] == 1
    assert values["knnssd_request_success_total", ("cancelled",)] == 1
    assert values["knnssd_request_rejections_total", ("queue_full",)] == 1
    assert values["knnssd_request_queue_time_seconds_sum", ()] == 0.25
    assert values["knnssd_e2e_request_latency_seconds_sum", ()] == 2.0


def test_series_begin_at_zero(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    metrics = Metrics()
    watch(metrics, checkpoint, tiny_artifact)
    values = samples(metrics)
    for domain in ("stories", "sql", OTHER_DOMAIN):
        for name in ("drafts", "draft_tokens", "accepted_tokens"):
            assert values[f"knnssd_spec_decode_num_{name}_total", (domain,)] == 0
        for position in range(4):
            assert values["knnssd_spec_decode_num_accepted_tokens_per_pos_total", (domain, str(position))] == 0
        assert values["knnssd_routes_total", (domain,)] == values["knnssd_route_similarity_count", (domain,)] == 0
    for reason in ("queue_full", "loading", "draining", "dead"):
        assert values["knnssd_request_rejections_total", (reason,)] == 0
    for reason in ("timeout", "draining", "dead", "internal"):
        assert values["knnssd_request_errors_total", (reason,)] == 0
    for reason in ("stop", "length", "cancelled"):
        assert values["knnssd_request_success_total", (reason,)] == 0


def test_without_an_artifact_the_domain_is_none(checkpoint: Checkpoint) -> None:
    metrics = Metrics()
    watch(metrics, checkpoint, None)
    metrics.observe_step(StepStats(routes=[UNROUTED]))
    values = samples(metrics)
    assert values["knnssd_routes_total", ("none",)] == values["knnssd_fallbacks_total", ("no_artifact",)] == 1
    assert values["knnssd_spec_decode_num_drafts_total", ("none",)] == 0


def test_ten_thousand_requests_add_no_series(checkpoint: Checkpoint, tiny_artifact: RoutingArtifact) -> None:
    """So the answer of /metrics, and the time it takes, stay bounded."""
    metrics = Metrics()
    engine = watch(metrics, checkpoint, tiny_artifact)
    assert engine.router is not None
    routes = [*engine.router.routes, engine.router.mixed]

    def request(number: int) -> None:
        route = replace(routes[number % 3], similarity=number % 200 / 100 - 1)
        rows = [RowStats(route.domain, 4, number % 5, number % 5 + 1)]
        is_baseline = number % 3 == 0
        metrics.observe_step(StepStats(prefill_tokens=9, routes=[route]))
        metrics.observe_step(StepStats(decode_seconds=0.01 + number % 7 / 1e3, rows=rows, is_baseline=is_baseline))
        metrics.observe_first_token(0.1)
        metrics.observe_further_tokens(number % 5 + 1, 0.01)
        metrics.observe_outcome(OUTCOME, 1.0)

    for number in range(60):
        request(number)
    before = samples(metrics).keys()
    for number in range(10_000):
        request(number)
    assert samples(metrics).keys() == before
    assert len(before) < 500


def test_registries_are_separate() -> None:
    first, second = Metrics(), Metrics()
    first.observe_rejection(FailureReason.DRAINING)
    assert samples(second)["knnssd_request_rejections_total", ("draining",)] == 0


def test_build_says_which_kernels_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "build", lambda: Path("native/x86_64_v3.cpython-311.so"))
    assert 'kernels="x86_64_v3"' in Metrics().render().decode()
    monkeypatch.setattr(kernels, "build", lambda: None)
    assert 'kernels="none"' in Metrics().render().decode()
