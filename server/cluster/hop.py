"""The ingress's part of a trace: a span between the caller's and those of the replica."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import Headers

from server.cluster.call import Call
from server.cluster.link import Question

if TYPE_CHECKING:
    from server.telemetry.traces import Traces


@contextmanager
def traced(question: Question, call: Call, traces: "Traces | None") -> Iterator[Question]:
    """The question as it is to be asked within the block; without traces as it came, its caller's trace included."""
    if traces is None:
        yield question
        return
    with traces.passed_on("ingress", Headers(raw=question.headers).get("traceparent")) as (span, traceparent):
        try:
            yield question.within(traceparent)
        finally:
            span.set_attribute("url.path", question.path)
            span.set_attribute("knnssd.tries", len(call.tried))
            span.set_attribute("knnssd.lost_replicas", call.num_lost)
            if call.tried:
                span.set_attribute("knnssd.replica", call.tried[-1])
                span.set_attribute("knnssd.routing", call.reason.value)
