"""Spans of ended generations: their names, times and attributes, and that nothing is sent unless asked for."""

import asyncio
import json
import sys
from collections.abc import Iterator

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pydantic_settings import SettingsError

from server.engine import (
    Checkpoint,
    DraftModel,
    FinishReason,
    GenerationRequest,
    Route,
    RoutingArtifact,
    SamplingParams,
    SequenceStats,
    SkipMask,
    StopConditions,
)
from server.generation import Outcome, Prompt
from server.settings import read_settings
from server.start import open_traces
from server.telemetry.traces import Traces, to_collector
from tests.api.live import make_worker, serve
from tests.telemetry.collector import collecting

ROUTE = Route("sql", DraftModel(SkipMask(frozenset({1}))), 0.75)
OUTCOME = Outcome(
    FinishReason.STOP, 3, 5, ROUTE, "cascade", 4, SequenceStats(2, 6, 4), 0.25, 0.5, 1.0, 0.125, 0.25, 0.5
)


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    traces = Traces("tiny", SimpleSpanProcessor(exporter))
    yield traces
    traces.close()


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None and span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_an_outcome_becomes_a_tree_of_spans(traces: Traces, exporter: InMemorySpanExporter) -> None:
    traces.observe(OUTCOME, 2.0)
    spans = by_name(exporter)
    root = "text_completion tiny"
    parents = {
        "queue": root,
        "prefill": root,
        "route": "prefill",
        "decode": root,
        "draft": "decode",
        "verify": "decode",
    }
    assert spans.keys() == {root, *parents}
    assert spans[root].parent is None
    for name, parent in parents.items():
        above = spans[name].parent
        assert above is not None and above.span_id == spans[parent].context.span_id
    lengths = {"queue": 0.25, "prefill": 0.5, "route": 0.125, "decode": 1.0, "draft": 0.25, "verify": 0.5, root: 2.0}
    assert {name: seconds(span) for name, span in spans.items()} == pytest.approx(lengths, abs=1e-5)
    assert spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time == spans["draft"].start_time
    assert spans["decode"].end_time == spans[root].end_time


def test_a_generation_joins_the_callers_trace(traces: Traces, exporter: InMemorySpanExporter) -> None:
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    traces.observe(OUTCOME, 2.0, f"00-{trace}-{span}-01")
    traces.observe(OUTCOME, 2.0, "nonsense")
    first, *_ = [each for each in exporter.get_finished_spans() if each.name == "text_completion tiny"]
    assert first.parent and f"{first.parent.span_id:016x}" == span
    assert f"{first.context.trace_id:032x}" == trace and first.kind is SpanKind.SERVER
    assert by_name(exporter)["text_completion tiny"].parent is None


def test_what_is_passed_on_stands_between_its_caller_and_what_follows(
    traces: Traces, exporter: InMemorySpanExporter
) -> None:
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with traces.passed_on("ingress", f"00-{trace}-{caller}-01") as (_, traceparent):
        traces.observe(OUTCOME, 2.0, traceparent)
    with pytest.raises(ValueError), traces.passed_on("lost", None):
        raise ValueError("text of a client")
    spans = by_name(exporter)
    above, below = spans["ingress"].parent, spans["text_completion tiny"].parent
    assert above and below and spans["ingress"].kind is SpanKind.SERVER
    assert (f"{above.trace_id:032x}", f"{above.span_id:016x}") == (trace, caller)
    assert below.span_id == spans["ingress"].context.span_id and f"{below.trace_id:032x}" == trace
    assert spans["lost"].parent is None and not spans["lost"].status.is_ok
    assert "text of a client" not in spans["lost"].to_json()


def test_who_is_not_traced_is_not_traced_further_on(traces: Traces, exporter: InMemorySpanExporter) -> None:
    with traces.passed_on("ingress", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00") as (_, traceparent):
        traces.observe(OUTCOME, 2.0, traceparent)
    assert traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-") and traceparent.endswith("-00")
    assert not exporter.get_finished_spans()


def test_attributes_follow_the_conventions(traces: Traces, exporter: InMemorySpanExporter) -> None:
    traces.observe(OUTCOME, 2.0)
    spans = by_name(exporter)
    assert dict(spans["text_completion tiny"].attributes or {}) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "knnssd",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "knnssd.method": "cascade",
        "knnssd.domain": "sql",
        "knnssd.draft_tokens": 6,
        "knnssd.accepted_tokens": 4,
    }
    assert dict(spans["route"].attributes or {}) == {"knnssd.domain": "sql", "knnssd.similarity": 0.75}


def test_the_worker_tells_of_finished_and_cancelled_generations(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    async def main() -> None:
        worker, engine = make_worker(checkpoint, tiny_artifact)
        worker.trace = traces.observe
        worker.start()
        while worker.unavailable:
            await asyncio.sleep(0.01)
        for max_tokens, is_cancelled in ((9, False), (200, True)):
            ticket = worker.reserve(1, 1, timeout=30)
            worker.submit(ticket, [Prompt(GenerationRequest([9, 8], SamplingParams(), StopConditions(max_tokens)))])
            async for _ in worker.pieces(ticket):
                if is_cancelled:
                    break
            worker.release(ticket)
            while worker.generations or engine.has_work:
                await asyncio.sleep(0.01)
        await worker.stop()

    asyncio.run(main())
    roots = [span.attributes or {} for span in exporter.get_finished_spans() if span.parent is None]
    assert [root["gen_ai.response.finish_reasons"] for root in roots] == [("length",), ("cancelled",)]
    assert roots[0]["gen_ai.usage.output_tokens"] == 9
    spans = exporter.get_finished_spans()
    of_the_first = {span.name: seconds(span) for span in spans if span.context.trace_id == spans[0].context.trace_id}
    assert 0 < of_the_first["route"] < of_the_first["prefill"]
    assert 0 < of_the_first["draft"] + of_the_first["verify"] < of_the_first["decode"]


def test_each_endpoint_names_its_operation(
    checkpoint: Checkpoint, tiny_artifact: RoutingArtifact, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    worker, _ = make_worker(checkpoint, tiny_artifact)
    worker.trace = traces.observe
    chat = {"messages": [{"role": "user", "content": "tell nobody"}]}
    text = {"prompt": "tell nobody"}
    with serve(worker) as url, httpx.Client(base_url=f"{url}/v1", timeout=30) as client:
        for path, body in (("chat/completions", chat), ("completions", text)):
            for is_streamed in (False, True):
                sent = {"model": "tiny", "max_tokens": 5, "n": 2, "stream": is_streamed, "temperature": 0}
                assert client.post(path, json={**sent, **body}).is_success
        assert client.post("completions", json={"model": "tiny", "prompt": ""}).status_code == 400
    roots = [span for span in exporter.get_finished_spans() if span.parent is None]
    assert [span.name for span in roots] == ["chat tiny"] * 4 + ["text_completion tiny"] * 4
    assert all(span.kind is SpanKind.SERVER for span in roots)
    for span in roots:
        assert span.attributes is not None
        assert span.attributes["gen_ai.operation.name"] == span.name.split()[0]
        assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert "nobody" not in "".join(span.to_json() for span in exporter.get_finished_spans())


def test_spans_reach_a_collector() -> None:
    with collecting() as (received, url):
        traces = to_collector("tiny", f"{url}/")
        traces.observe(OUTCOME, 2.0)
        traces.close()
    ((path, content),) = received
    assert path == "/v1/traces"
    (resource,) = json.loads(content)["resourceSpans"]
    assert len(resource["scopeSpans"][0]["spans"]) == 7
    assert {"key": "service.name", "value": {"stringValue": "knn-ssd-server"}} in resource["resource"]["attributes"]


def test_traces_are_off_unless_asked_for() -> None:
    assert open_traces(read_settings([])) is None
    with pytest.raises(SettingsError, match="otlp-endpoint"):
        read_settings(["--otlp-endpoint", "collector:4318"])


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "server.telemetry.traces", None)
    with pytest.raises(SettingsError, match=r"needs the extra otel: pip install 'knn-ssd-server\[otel\]'"):
        open_traces(read_settings(["--otlp-endpoint", "http://127.0.0.1:4318"]))
