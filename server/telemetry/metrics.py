"""Prometheus metrics, fed by the worker and by the engine's statistics of each step; the engine knows no metric.

PromQL, for a domain or for all:
  acceptance rate       rate(spec_decode_num_accepted_tokens_total) / rate(spec_decode_num_draft_tokens_total)
  mean accepted length  1 + rate(spec_decode_num_accepted_tokens_total) / rate(spec_decode_num_drafts_total)
(each name with the prefix knnssd_ and a range). Label values come from the artifact or from enumerations.
"""

from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from server.engine import OTHER_DOMAIN, UNROUTED, FinishReason, Route, RowStats, StepStats, kernel_build, methods
from server.generation import Outcome
from server.served_model import ServedModel
from server.telemetry.speedup import Speedups
from server.telemetry.window import Totals, Window
from server.tickets import FailureReason

FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
"""Bounds of the buckets for one token, in seconds: a few milliseconds on a GPU, tens to hundreds on a CPU."""
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
"""Bounds of the buckets for a prompt or a request, in seconds."""
SIMILARITIES = (-0.5, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)


REJECTIONS = (
    FailureReason.QUEUE_FULL,
    FailureReason.CLIENT_LIMIT,
    FailureReason.LOADING,
    FailureReason.DRAINING,
    FailureReason.DEAD,
)
"""Reasons for refusing a request before any work."""
ERRORS = (
    FailureReason.TIMEOUT,
    FailureReason.DRAINING,
    FailureReason.FAILED,
    FailureReason.DEAD,
    FailureReason.INTERNAL,
)
"""Reasons for which an accepted request ends without its whole answer, through no fault of its own."""


class Fallback(StrEnum):
    """Why a prompt is not drafted as its own domain would be.

    Its nearest anchor is too far away; or its domain's draft is the model itself, and would save nothing; or
    that needs a copy in fewer bits, which the server does not have; or the server has no artifact.
    """

    OUT_OF_DOMAIN = "out_of_domain"
    EMPTY_MASK = "empty_mask"
    NO_DRAFT_WEIGHTS = "no_draft_weights"
    NO_ARTIFACT = "no_artifact"


class Metrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        # When a series began is of no use here and would nearly double the answer.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.drafts = self.counter("spec_decode_num_drafts", "Verifications that had a draft", "domain")
        self.drafted = self.counter("spec_decode_num_draft_tokens", "Drafted tokens", "domain")
        self.accepted = self.counter("spec_decode_num_accepted_tokens", "Accepted drafted tokens", "domain")
        self.accepted_at = self.counter("spec_decode_num_accepted_tokens_per_pos", "By place", "domain", "position")
        self.drafter_drafted = self.counter("drafter_draft_tokens", "Drafted tokens by their drafter", "drafter")
        self.drafter_accepted = self.counter("drafter_accepted_tokens", "Accepted ones by their drafter", "drafter")
        self.prompt_tokens = self.counter("prompt_tokens", "Prompt tokens processed")
        self.cached_tokens = self.counter("cached_prompt_tokens", "Prompt tokens that were not read again")
        self.generation_tokens = self.counter("generation_tokens", "Tokens generated")
        self.decode_tokens = self.counter("domain_decode_tokens", "Tokens of decode steps", "domain")
        self.decode_seconds = self.counter("domain_decode_seconds", "Time of decode steps, of each sequence", "domain")
        self.time_to_first_token = self.histogram("time_to_first_token_seconds", "Arrival to first token", SLOW)
        self.inter_token = self.histogram("inter_token_latency_seconds", "Time for each further token", FAST)
        self.latency = self.histogram("e2e_request_latency_seconds", "Arrival to last token", SLOW)
        self.queue_time = self.histogram("request_queue_time_seconds", "Waiting for a free slot", SLOW)
        self.finished = self.counter("request_success", "Ended generations", "finished_reason")
        self.rejections = self.counter("request_rejections", "Requests refused before any work", "reason")
        self.errors = self.counter("request_errors", "Accepted requests that ended in an error", "reason")
        self.seconds = {
            part: self.counter(f"{part}_seconds", f"Time in the engine's {part} phase")
            for part in ("prefill", "route", "draft", "verify", "decode")
        }
        self.similarity = self.histogram("route_similarity", "Cosine to nearest anchor", SIMILARITIES, "domain")
        self.routes = self.counter("routes", "Routed prompts", "domain")
        self.fallbacks = self.counter("fallbacks", "Prompts without a domain's own draft", "reason")
        self.worker_up = self.gauge("worker_up", "1 while the engine's thread lives")
        self.engine_failures = self.counter("engine_failures", "Engines that failed and were loaded anew")
        self.running = self.gauge("num_requests_running", "Sequences being decoded or prefilled")
        self.waiting = self.gauge("num_requests_waiting", "Sequences waiting for a slot")
        self.slots_used = self.gauge("kv_slots_used", "Cache slots in use")
        self.slots_total = self.gauge("kv_slots_total", "Cache slots")
        self.blocks_used = self.gauge("kv_blocks_used", "Cache blocks that running sequences have")
        self.blocks_kept = self.gauge("kv_blocks_kept", "Cache blocks kept for texts that begin alike")
        self.blocks_total = self.gauge("kv_blocks_total", "Cache blocks")
        self.evicted = self.counter("kv_blocks_evicted", "Kept cache blocks that others needed")
        self.preempted = self.counter("num_preemptions", "Sequences that gave their blocks back, to begin again later")
        self.build = Info("knnssd_build", "What is installed", registry=self.registry)
        self.build.info({"version": own_version(), "torch": version("torch"), "kernels": kernel_build()})
        self.has_draft_weights = False
        self.model = Info("knnssd_model", "What is served", registry=self.registry)
        self.speedups = Speedups()
        self.registry.register(self.speedups)
        self.window = Window(self.totals)
        self.begin_known()

    def begin_known(self) -> None:
        self.begin(self.finished, FinishReason)
        self.begin(self.rejections, REJECTIONS)
        self.begin(self.errors, ERRORS)
        self.begin(self.fallbacks, Fallback)
        drafters = {name for method in methods().values() for name in method.drafters}
        self.begin(self.drafter_drafted, drafters)
        self.begin(self.drafter_accepted, drafters)

    @staticmethod
    def begin(metric: Counter | Histogram, values: Iterable[str]) -> None:
        """Starts series at 0, so that a rate sees their first event."""
        for value in values:
            metric.labels(value)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"knnssd_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"knnssd_{name}", text, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"knnssd_{name}", text, labels, buckets=buckets, registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)

    def watch(self, served: ServedModel) -> None:
        """Tells of the loaded model; the engine's load is read whenever metrics are asked for, so it is never stale."""
        engine, checkpoint = served.engine, served.checkpoint
        described = {"model": served.name, "fingerprint": checkpoint.fingerprint, "method": engine.config.method}
        runs_on = "kernels" if engine.model.native else "torch"
        where = {"dtype": str(checkpoint.dtype), "device": str(checkpoint.device), "runs_on": runs_on}
        self.has_draft_weights = engine.model.low_bit is not None
        drafts = engine.model.low_bit.precision if engine.model.low_bit else "none"
        self.model.info({**described, **where, "precision": engine.model.precision, "draft_weights": drafts})
        domains = served.domains or [UNROUTED.domain]
        begun: list[Counter | Histogram] = [*self.by_domain.values(), self.drafts, self.similarity]
        for metric in begun:
            self.begin(metric, domains)
        for domain in domains:
            for position in range(engine.longest_draft):
                self.accepted_at.labels(domain, str(position))
        self.running.set_function(lambda: engine.num_running)
        self.waiting.set_function(lambda: engine.num_waiting)
        self.slots_used.set_function(lambda: engine.num_running)
        self.slots_total.set(engine.config.max_batch)
        pool = engine.tables.pool
        self.blocks_used.set_function(lambda: pool.num_used)
        self.blocks_kept.set_function(lambda: len(pool.kept))
        self.blocks_total.set(pool.num_blocks)

    def unwatch(self) -> None:
        """Counts an engine that failed, and lets go of it."""
        self.engine_failures.inc()
        for gauge in (self.running, self.waiting, self.slots_used, self.blocks_used, self.blocks_kept):
            gauge.set_function(lambda: 0)

    @property
    def by_domain(self) -> dict[str, Counter]:
        """The counters of a domain by the figure that they count."""
        return {
            "answers": self.routes,
            "tokens": self.decode_tokens,
            "seconds": self.decode_seconds,
            "drafted": self.drafted,
            "accepted": self.accepted,
        }

    def totals(self) -> Totals:
        """The values of these counters, and as `decode` of no domain the time of all decode steps."""
        return {
            (figure, sample.labels.get("domain", "")): sample.value
            for figure, counter in (*self.by_domain.items(), ("decode", self.seconds["decode"]))
            for family in counter.collect()
            for sample in family.samples
        }

    def observe_step(self, stats: StepStats) -> None:
        self.window.sample()
        for part, total in self.seconds.items():
            total.inc(getattr(stats, f"{part}_seconds"))
        self.prompt_tokens.inc(stats.prefill_tokens)
        self.cached_tokens.inc(stats.cached_tokens)
        self.evicted.inc(stats.num_evicted)
        self.preempted.inc(stats.num_preempted)
        for route in stats.routes:
            self.observe_route(route)
        for row in stats.rows:
            self.observe_row(row, stats.decode_seconds)
        if stats.rows:
            self.speedups.observe(stats)

    def observe_route(self, route: Route) -> None:
        self.routes.labels(route.domain).inc()
        if route.similarity is not None:
            self.similarity.labels(route.domain).observe(route.similarity)
        if route.domain == UNROUTED.domain:
            self.fallbacks.labels(Fallback.NO_ARTIFACT).inc()
        elif route.draft.is_full:
            self.fallbacks.labels(Fallback.EMPTY_MASK).inc()
        elif route.draft.is_low_bit and not self.has_draft_weights:
            self.fallbacks.labels(Fallback.NO_DRAFT_WEIGHTS).inc()
        elif route.domain == OTHER_DOMAIN and route.similarity is not None:
            self.fallbacks.labels(Fallback.OUT_OF_DOMAIN).inc()

    def observe_row(self, row: RowStats, decode_seconds: float) -> None:
        self.decode_tokens.labels(row.domain).inc(row.num_emitted)
        self.decode_seconds.labels(row.domain).inc(decode_seconds)
        if row.num_drafted:
            self.drafts.labels(row.domain).inc()
            self.drafted.labels(row.domain).inc(row.num_drafted)
            self.accepted.labels(row.domain).inc(row.num_accepted)
            self.drafter_drafted.labels(row.drafter).inc(row.num_drafted)
            self.drafter_accepted.labels(row.drafter).inc(row.num_accepted)
            for position in range(row.num_accepted):
                self.accepted_at.labels(row.domain, str(position)).inc()

    def observe_first_token(self, seconds: float) -> None:
        self.generation_tokens.inc()
        self.time_to_first_token.observe(seconds)

    def observe_further_tokens(self, num_tokens: int, seconds: float) -> None:
        """Tokens that came together share the time since the ones before: four after 0.2 s took 0.05 s each."""
        self.generation_tokens.inc(num_tokens)
        for _ in range(num_tokens):
            self.inter_token.observe(seconds / num_tokens)

    def observe_outcome(self, outcome: Outcome, latency: float) -> None:
        self.finished.labels(outcome.finish_reason.value).inc()
        self.queue_time.observe(outcome.queue_seconds)
        self.latency.observe(latency)

    def observe_rejection(self, reason: FailureReason) -> None:
        """Counts a request that was refused; `reason` is one of `REJECTIONS`."""
        self.rejections.labels(reason).inc()

    def observe_error(self, reason: FailureReason) -> None:
        """Counts an accepted request that ended in an error; `reason` is one of `ERRORS`."""
        self.errors.labels(reason).inc()

    def observe_cancelled(self) -> None:
        self.finished.labels(FinishReason.CANCELLED.value).inc()


def own_version() -> str:
    """The installed version, or `source` where the packages are run from their folder."""
    try:
        return version("knn-ssd-server")
    except PackageNotFoundError:
        return "source"
