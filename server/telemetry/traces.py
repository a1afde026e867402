"""OpenTelemetry spans of ended generations, sent where --otlp-endpoint says; needs the extra `otel`.

A generation is told when it has ended, so its spans are laid out backwards from then. Drafting and
verifying alternate many times; each is one span as long as all of its parts, one after the other.
Spans carry counts and times, never text.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.json.http import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from server.generation import Outcome

NANOSECONDS = 1_000_000_000
PARENTS = TraceContextTextMapPropagator()


class Traces:
    """Turns outcomes into spans; `processor` takes them further, without holding up the engine's thread."""

    def __init__(self, model: str, processor: SpanProcessor) -> None:
        self.model = model
        self.provider = TracerProvider(resource=Resource.create({"service.name": "knn-ssd-server"}))
        self.provider.add_span_processor(processor)
        self.tracer = self.provider.get_tracer("knn-ssd-server")

    def observe(self, outcome: Outcome, latency: float, traceparent: str | None = None) -> None:
        """Makes the spans of a generation that ended now, `latency` seconds after its request arrived.

        They belong to the caller's trace where there is one, as `00-TRACE-SPAN-01`.
        """
        ended = time.time_ns() / NANOSECONDS
        decoded = ended - outcome.decode_seconds
        prefilled = decoded - outcome.prefill_seconds
        drafted = decoded + outcome.draft_seconds
        caller = context_of(traceparent)
        name, attributes = f"{outcome.operation} {self.model}", self.attributes(outcome)
        root = self.span(caller, name, ended - latency, ended, attributes, SpanKind.SERVER)
        self.span(root, "queue", prefilled - outcome.queue_seconds, prefilled)
        prefill = self.span(root, "prefill", prefilled, decoded)
        self.span(prefill, "route", decoded - outcome.route_seconds, decoded, routing(outcome))
        decode = self.span(root, "decode", decoded, ended)
        self.span(decode, "draft", decoded, drafted, {"knnssd.drafts": outcome.stats.num_drafts})
        self.span(decode, "verify", drafted, drafted + outcome.verify_seconds)

    @contextmanager
    def passed_on(self, name: str, traceparent: str | None) -> Iterator[tuple[Span, str]]:
        """A span as long as the block, in the caller's trace or in one of its own, and the `traceparent` that names it.

        Whoever gets that has its spans below this one.
        """
        caller, headers = context_of(traceparent), dict[str, str]()
        span = self.tracer.start_span(name, caller, SpanKind.SERVER)
        PARENTS.inject(headers, set_span_in_context(span, caller))
        try:
            yield span, headers["traceparent"]
        except Exception as error:
            # Its own text may repeat a client's.
            span.set_status(StatusCode.ERROR, type(error).__name__)
            raise
        finally:
            span.end()

    def span(
        self,
        parent: Context,
        name: str,
        started: float,
        ended: float,
        attributes: dict[str, AttributeValue] | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> Context:
        """A finished span, which starts a trace in an empty context; returns the context of its children."""
        span = self.tracer.start_span(name, parent, kind, attributes, start_time=int(started * NANOSECONDS))
        span.end(int(ended * NANOSECONDS))
        return set_span_in_context(span, parent)

    def attributes(self, outcome: Outcome) -> dict[str, AttributeValue]:
        """Names of OpenTelemetry's GenAI conventions, and this server's own for what those do not know."""
        return {
            "gen_ai.operation.name": outcome.operation,
            "gen_ai.provider.name": "knnssd",
            "gen_ai.request.model": self.model,
            "gen_ai.response.model": self.model,
            "gen_ai.response.finish_reasons": [outcome.finish_reason.value],
            "gen_ai.usage.input_tokens": outcome.prompt_tokens,
            "gen_ai.usage.output_tokens": outcome.completion_tokens,
            "knnssd.method": outcome.method,
            "knnssd.domain": outcome.route.domain,
            "knnssd.draft_tokens": outcome.stats.num_drafted,
            "knnssd.accepted_tokens": outcome.stats.num_accepted,
        }

    def close(self) -> None:
        """Sends what is left; gives up quickly where nobody listens."""
        with suppress(Exception):
            self.provider.shutdown()


def context_of(traceparent: str | None) -> Context:
    """What a span of the caller's trace has as its parent; empty where there is none, or it cannot be read."""
    return PARENTS.extract({"traceparent": traceparent}, Context()) if traceparent else Context()


def routing(outcome: Outcome) -> dict[str, AttributeValue]:
    similarity = outcome.route.similarity
    known: dict[str, AttributeValue] = {} if similarity is None else {"knnssd.similarity": similarity}
    return {"knnssd.domain": outcome.route.domain, **known}


def to_collector(model: str, endpoint: str) -> Traces:
    """Traces that are sent in batches to a collector's OTLP/HTTP port, as http://127.0.0.1:4318."""
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=5)
    return Traces(model, BatchSpanProcessor(exporter))
