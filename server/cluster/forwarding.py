"""The ingress: an ASGI application that sends each request to a replica as it came, and its answer back as it comes.

It reads of a body what routing needs and understands nothing else, so the whole API is that of the replicas. Serve's
router chooses a replica; the bytes go over HTTP, for what passes through Ray takes milliseconds for each token. Where
a replica is full, or dies before it has begun to answer, another one is asked.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from server.api.errors import ServiceUnavailableError
from server.api.http.middleware import PROBES
from server.api.http.reply import disconnection
from server.cluster.affinity import Affinity
from server.cluster.call import Call
from server.cluster.domains import DomainGuess, told_domain
from server.cluster.hop import traced
from server.cluster.ingress_metrics import IngressMetrics
from server.cluster.link import Answer, Link, LostError, Question
from server.cluster.lost import last_event, numbered
from server.cluster.prompt_text import blocks_of, prompt_text, words_of

if TYPE_CHECKING:
    from server.telemetry.traces import Traces

MOST_TRIES = 3
"""Replicas that are asked for one request. One that brings replicas down must not bring down all."""
BUSY = frozenset({429, 503})
"""Statuses with which a replica says that it takes no request now."""
PROBE_SECONDS = 2.0
LOST = "The replica that worked on this request was lost. Try again."
NONE_THERE = "No replica is there; try again soon."

Owner = Callable[[Headers], str]
"""Whose texts a request's may be the continuation of."""


class Forwarding:
    """Asks `replicas`, and learns from their answers what kinds of prompts there are.

    For a replica to be there a request waits `timeout` seconds, one of monitoring two.
    """

    def __init__(
        self,
        replicas: DeploymentHandle,
        affinity: Affinity,
        metrics: IngressMetrics,
        owner: Owner,
        timeout: float,
        traces: "Traces | None" = None,
    ) -> None:
        self.replicas = replicas
        self.affinity = affinity
        self.metrics = metrics
        self.owner = owner
        self.timeout = timeout
        self.traces = traces
        self.domains = DomainGuess()
        self.loads: Counter[str] = Counter()
        self.link = Link()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on for as long as its client stays; refuses what is no request, a web socket."""
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        question = Question.of(scope, (await receive()).get("body", b""))
        relaying = asyncio.ensure_future(self.relay(question, send))
        leaving = asyncio.ensure_future(disconnection(receive))
        try:
            await asyncio.wait({relaying, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if relaying.done():
                relaying.result()
        finally:
            relaying.cancel()
            leaving.cancel()
            await asyncio.gather(relaying, leaving, return_exceptions=True)

    async def relay(self, question: Question, send: Send) -> None:
        # 1) What the router goes by.
        text = prompt_text(question.body)
        words = words_of(text) if text else set()
        blocks = blocks_of(text, self.owner(Headers(raw=question.headers)))
        call = Call(self.affinity, self.loads, blocks, self.domains.guess(words))
        async with AsyncExitStack() as until_the_end:
            if text:
                question = until_the_end.enter_context(traced(question, call, self.traces))
            # 2) A replica that begins to answer.
            answer = await self.begun(call, question, until_the_end)
            # 3) Its answer, which tells the prompt's domain.
            async for message in self.messages(answer, call, question.path):
                if text and (domain := told_domain(message.get("body", b""))):
                    self.domains.learn(words, domain)
                await send(message)

    async def begun(self, call: Call, question: Question, until_the_end: AsyncExitStack) -> Answer:
        """The first answer of a replica that takes the call; raises `ServiceUnavailableError` where none does.

        It counts as that replica's load until the end.
        """
        while True:
            async with AsyncExitStack() as attempt:
                url = await self.place(call, question.path, attempt)
                is_last = not call.num_others or len(call.tried) >= MOST_TRIES
                try:
                    answer = await attempt.enter_async_context(self.link.ask(url, question))
                except LostError as error:
                    self.lose(call)
                    if len(call.tried) >= MOST_TRIES:
                        raise ServiceUnavailableError(LOST) from error
                else:
                    if is_last or answer.status not in BUSY:
                        await until_the_end.enter_async_context(attempt.pop_all())
                        return answer
            self.metrics.retries.inc()

    async def place(self, call: Call, path: str, attempt: AsyncExitStack) -> str:
        """The address of the replica that the router chooses, whose load counts as long as the attempt lasts."""
        try:
            async with asyncio.timeout(PROBE_SECONDS if path in PROBES else self.timeout):
                # Without a reservation, which is a question to the replica: each counts its own, and drains itself.
                choosing = self.replicas.choose_replica(call, _reserve=False)
                chosen = await attempt.enter_async_context(choosing)
        except (TimeoutError, DeploymentUnavailableError) as error:
            raise ServiceUnavailableError(NONE_THERE) from error
        call.begin(chosen.replica_id)
        attempt.callback(call.end, chosen.replica_id)
        self.metrics.observe_routed(chosen.replica_id, call.reason)
        return str(chosen.replica_metadata["url"])

    def lose(self, call: Call) -> None:
        """Counts that the call's replica is gone."""
        call.num_lost += 1
        self.metrics.observe_lost(call.tried[-1])

    async def messages(self, answer: Answer, call: Call, path: str) -> AsyncIterator[Message]:
        """All of the answer; a stream whose replica dies ends with an error in the form of its endpoint."""
        yield answer.start
        number = 0
        try:
            async for data in answer.pieces():
                number = numbered(data) or number
                yield {"type": "http.response.body", "body": data, "more_body": True}
        except LostError:
            self.lose(call)
            if not answer.is_stream:
                raise
            event = last_event(path, ServiceUnavailableError(LOST), number + 1)
            yield {"type": "http.response.body", "body": event.encode(), "more_body": True}
        yield {"type": "http.response.body", "body": b""}
