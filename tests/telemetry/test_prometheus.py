"""A real Prometheus reads live servers: each expression of panels, rules and alerts has data, and alerts fire.

promtool's own tests (docker/test_dashboards.py) cover when an alert waits and when it stays silent.
"""

import contextlib
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.app import AppConfig
from server.engine import (
    Checkpoint,
    Decoder,
    Emission,
    Engine,
    EngineConfig,
    RoutingArtifact,
    SkipMask,
    StepStats,
    TextCodec,
)
from server.engine.types import LONGEST_GROWTH
from server.served_model import ServedModel
from server.telemetry.metrics import Metrics
from server.tickets import QueueLimits
from server.worker import Worker
from tests.api.live import GatedEngine, lose_model, serve, wait_until
from tests.telemetry.prometheus import Prometheus, expressions, free_port, rules, run_prometheus, write_history

MISSING = [program for program in ("prometheus", "promtool") if shutil.which(program) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING} of Debian's package prometheus"),
]

MATCHERS = '{job=~".*", model_name=~".*", instance=~".*", engine=~".*"}'
ACCEPTED = f"sum(rate(vllm:spec_decode_num_accepted_tokens_total{MATCHERS}[1m]))"
DRAFTED = f"sum(rate(vllm:spec_decode_num_draft_tokens_total{MATCHERS}[1m]))"
DRAFTS = f"sum(rate(vllm:spec_decode_num_drafts_total{MATCHERS}[1m]))"
VLLM_QUERIES = {
    "acceptance": f"{ACCEPTED} / ({DRAFTED} > 0)",
    "length": f"1 + {ACCEPTED} / ({DRAFTS} > 0)",
    "accepted tokens/s": ACCEPTED,
    "draft tokens/s": DRAFTED,
    "drafts/s": DRAFTS,
    "output from drafts": f"{ACCEPTED} / (sum(rate(vllm:generation_tokens_total{MATCHERS}[1m])) > 0)",
    "by model": ACCEPTED.replace("sum(", "sum by (model_name) ("),
    "by position": f"sum by (position) (rate(vllm:spec_decode_num_accepted_tokens_per_pos_total{MATCHERS}[1m]))"
    f" / on () group_left () ({DRAFTS} > 0)",
}
"""Queries of vLLM's dashboard for speculative decoding, with every variable filled in."""


class StuckEngine(Engine):
    """Begins once two requests have come, and stops in the second step, where one waits, until it is let go."""

    def __init__(self, model: Decoder, config: EngineConfig) -> None:
        super().__init__(model, config)
        self.gate = threading.Event()

    @property
    def has_work(self) -> bool:
        is_begun = self.num_waiting > 1 or self.num_running > 0 or self.gate.is_set()
        return is_begun and super().has_work

    def step(self) -> tuple[list[Emission], StepStats]:
        if self.num_running:
            self.gate.wait()
        return super().step()


def worker_of(checkpoint: Checkpoint, engine: Engine) -> Worker:
    served = ServedModel("tiny", checkpoint, TextCodec(checkpoint.tokenizer), engine)
    return Worker(lambda: served, QueueLimits(64, 100_000), Metrics())


class Users:
    """Ask servers of the model `tiny`."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def ask(self, url: str, number: int) -> int:
        """The status of one answer."""
        messages = [{"role": "user", "content": f"{number * 7919} " * (1 + number % 5)}]
        body = {"model": "tiny", "messages": messages, "max_completion_tokens": 24, "temperature": 0}
        return self.client.post(f"{url}/v1/chat/completions", json=body).status_code

    @contextlib.contextmanager
    def keep_asking(self, *urls: str) -> Iterator[None]:
        """One request after another to each server, until the end of the block."""
        is_over = threading.Event()

        def user(url: str) -> None:
            for number in itertools.count():
                if is_over.wait(0.05):
                    return
                assert self.ask(url, number) == 200

        with ThreadPoolExecutor(len(urls)) as pool:
            users = [pool.submit(user, url) for url in urls]
            try:
                yield
            finally:
                is_over.set()
        for ended in users:
            ended.result()


LONGEST = 4 * LONGEST_GROWTH
"""Tokens of the longest looked-up draft of the servers below."""


INGRESS = "knnssd_ingress"
"""What tells of an ingress before replicas is tried with one (`tests/cluster`)."""


def alerts() -> set[str]:
    return {rule["alert"] for rule in rules() if "alert" in rule and INGRESS not in rule["expr"]}


def with_bad_masks(artifact: RoutingArtifact) -> RoutingArtifact:
    """Masks that leave out every layer: drafts are nonsense."""
    manifest = artifact.manifest
    everything = frozenset(range(manifest.num_layers))
    bad = SkipMask(everything, everything)
    domains = [
        domain.model_copy(update={"draft": domain.draft.model_copy(update={"mask": bad})})
        for domain in manifest.domains
    ]
    return RoutingArtifact(manifest.model_copy(update={"domains": domains}), artifact.anchors, artifact.centre, {})


def check_data(prometheus: Prometheus) -> None:
    """Each expression has data, and what vLLM's dashboard shows agrees with itself."""
    recorded = [text for rule in rules() if "record" in rule for text in (rule["expr"], rule["record"])]
    assert not prometheus.lacks(text for text in (*expressions(), *recorded) if INGRESS not in text)
    queries = {name: query.replace("vllm:", "knnssd_") for name, query in VLLM_QUERIES.items()}
    shown = {name: [float(series["value"][1]) for series in prometheus.query(q)] for name, q in queries.items()}
    assert all(shown.values()), shown
    assert 0 < shown["acceptance"][0] < 1 < shown["length"][0] < 1 + LONGEST
    assert 0 < shown["output from drafts"][0] < 1
    assert len(shown["by position"]) == LONGEST and all(0 <= share <= 1 for share in shown["by position"])
    for name in ("fallbacks_total", "routes_total", "route_similarity_count"):
        assert float(prometheus.query(f"sum(knnssd_{name})")[0]["value"][1]) > 0, name


def fire(prometheus: Prometheus, instance: str, *names: str) -> set[str]:
    """Waits until these alerts fire for the instance."""
    expected = {(f"Knnssd{name}", instance) for name in names}
    wait_until(lambda: expected <= prometheus.firing())
    return {alert for alert, _ in expected}


def kill(worker: Worker, engine: GatedEngine, ask: Callable[[int], int]) -> None:
    """The next step raises while thirty requests wait for it; those that come later are refused."""
    engine.gate.clear()
    with ThreadPoolExecutor(30) as pool:
        waiting = [pool.submit(ask, number) for number in range(30)]
        wait_until(lambda: len(worker.tickets.open) == 30 and engine.has_work)
        lose_model(worker)
        engine.error = RuntimeError("broken on purpose")
        engine.gate.set()
        assert {future.result() for future in waiting} == {503}
    assert {ask(number) for number in range(60)} == {503}


@pytest.fixture
def users() -> Iterator[Users]:
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(timeout=120, trust_env=False, limits=limits) as client:
        yield Users(client)


def test_prometheus_shows_its_key(checkpoint: Checkpoint, tmp_path: Path) -> None:
    engine = Engine(Decoder(checkpoint), EngineConfig())
    with serve(worker_of(checkpoint, engine), AppConfig(api_keys=("secret",))) as url:
        for key, is_read in (("secret", "1"), ("none", "0")):
            (tmp_path / key).mkdir()
            with run_prometheus(tmp_path / key, [url.removeprefix("http://")], key) as prometheus:
                wait_until(lambda: bool(prometheus.query("up")))
                assert prometheus.query("up")[0]["value"][1] == is_read


def test_prometheus_reads_live_servers(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, tmp_path: Path, users: Users
) -> None:
    config = EngineConfig(max_batch=2, baseline_share=1 / 4, is_adaptive=False)
    manifest = tiny_artifact.manifest.model_copy(update={"similarity_threshold": 0.2})
    artifact = RoutingArtifact(manifest, tiny_artifact.anchors, tiny_artifact.centre, {})
    busy = worker_of(checkpoint, Engine(Decoder(checkpoint), config, artifact))
    skipping = replace(config, method="skip")
    sick_engine = GatedEngine(Decoder(checkpoint), skipping, with_bad_masks(tiny_artifact))
    sick = worker_of(checkpoint, sick_engine)
    stuck_engine = StuckEngine(Decoder(checkpoint), EngineConfig(max_batch=1, max_draft=4))
    stuck = worker_of(checkpoint, stuck_engine)
    with contextlib.ExitStack() as stack:
        urls = [stack.enter_context(serve(worker)) for worker in (busy, sick, stuck)]
        pool = stack.enter_context(ThreadPoolExecutor(3))
        stack.callback(stuck_engine.gate.set)
        for number in range(3):
            pool.submit(users.ask, urls[2], number)
        wait_until(lambda: stuck_engine.num_running == 1 and stuck_engine.num_waiting > 0)
        targets = [*(url.removeprefix("http://") for url in urls), f"127.0.0.1:{free_port()}"]
        history = [{"instance": targets[1], "domain": domain.name} for domain in manifest.domains]
        write_history(tmp_path, "knnssd:acceptance:ratio5m", history, 0.9)
        prometheus = stack.enter_context(run_prometheus(tmp_path, targets))
        with users.keep_asking(urls[0], urls[1]):
            check_data(prometheus)
            seen = fire(prometheus, targets[1], "SpeculationSlower", "DomainSlower", "AcceptanceCollapsed")
        seen |= fire(prometheus, targets[2], "QueueFilling", "WorkerStalled")
        seen |= fire(prometheus, targets[3], "ServerDown")
        healthy = {alert for alert, instance in prometheus.firing() if instance == targets[0]}
        # On a tiny model drafts may well cost more than they save.
        assert healthy <= {"KnnssdSpeculationSlower", "KnnssdDomainSlower"}
        kill(sick, sick_engine, lambda number: users.ask(urls[1], number))
        seen |= fire(prometheus, targets[1], "WorkerDown", "Errors", "Rejections")
        assert seen == alerts()
