"""What Prometheus is told, exactly."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.engine import (
    FULL,
    OTHER_DOMAIN,
    UNROUTED,
    FinishReason,
    Method,
    Route,
    RowStats,
    SequenceStats,
    StepStats,
)
from server.generation import Outcome
from server.metrics import Metrics, SpeedupMeter


def samples(metrics: Metrics) -> dict[tuple[str, tuple[str, ...]], float]:
    """Values by name and label values."""
    families = text_string_to_metric_families(metrics.render().decode())
    return {(s.name, tuple(s.labels.values())): s.value for family in families for s in family.samples}


def decode_step(seconds: float, *emitted: int, is_baseline: bool = False) -> StepStats:
    rows = [RowStats("sql", num - 1, num - 1, num) for num in emitted]
    return StepStats(decode_seconds=seconds, is_baseline=is_baseline, rows=rows)


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
    routes = [Route("sql", FULL, 0.8), Route(OTHER_DOMAIN, FULL, 0.05), Route(OTHER_DOMAIN, FULL), UNROUTED]
    metrics.observe_step(StepStats(routes=routes))
    values = samples(metrics)
    assert values["knnssd_routes_total", ("sql",)] == 1
    assert values["knnssd_routes_total", (OTHER_DOMAIN,)] == 2
    assert values["knnssd_fallbacks_total", ("out_of_domain",)] == 1
    assert values["knnssd_route_similarity_bucket", ("sql", "0.7")] == 0
    assert values["knnssd_route_similarity_bucket", ("sql", "0.8")] == 1
    assert values["knnssd_route_similarity_count", (OTHER_DOMAIN,)] == 1


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
    outcome = Outcome(FinishReason.STOP, 3, 5, UNROUTED, Method.PLAIN, 4, SequenceStats(), 0.25, 0.5, 1.0)
    metrics.observe_outcome(outcome, 2.0)
    metrics.observe_cancelled()
    metrics.observe_rejection("queue_full")
    values = samples(metrics)
    assert values["knnssd_request_success_total", ("stop",)] == 1
    assert values["knnssd_request_success_total", ("cancelled",)] == 1
    assert values["knnssd_request_rejections_total", ("queue_full",)] == 1
    assert values["knnssd_request_queue_time_seconds_sum", ()] == 0.25
    assert values["knnssd_e2e_request_latency_seconds_sum", ()] == 2.0


def test_speedup_compares_time_per_token_and_row() -> None:
    meter = SpeedupMeter()
    meter.decay = 1.0
    meter.observe(decode_step(0.1, 3))
    assert meter.speedup is None
    meter.observe(decode_step(0.06, 1, is_baseline=True))
    assert meter.speedup == pytest.approx(0.06 / (0.1 / 3))
    meter.observe(decode_step(0.1, 1, 1, is_baseline=True))
    assert meter.speedup == pytest.approx(((0.06 + 0.2) / 3) / (0.1 / 3))


def test_speedup_is_absent_until_it_is_known() -> None:
    metrics = Metrics()
    metrics.observe_step(decode_step(0.1, 3))
    metrics.observe_step(StepStats(prefill_tokens=3))
    assert ("knnssd_speculation_speedup", ()) not in samples(metrics)
    metrics.observe_step(decode_step(0.1, 1, is_baseline=True))
    assert samples(metrics)["knnssd_speculation_speedup", ()] == pytest.approx(3, rel=0.01)


def test_speedup_follows_the_traffic() -> None:
    meter = SpeedupMeter()
    for emitted in (1, 4):
        for step in range(40_000):
            is_baseline = step % 64 == 0
            meter.observe(decode_step(0.1, 1 if is_baseline else emitted, is_baseline=is_baseline))
    assert meter.speedup == pytest.approx(4, rel=0.01)


def test_registries_are_separate() -> None:
    first, second = Metrics(), Metrics()
    first.observe_rejection("draining")
    assert ("knnssd_request_rejections_total", ("draining",)) not in samples(second)
