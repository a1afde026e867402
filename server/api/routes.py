"""The endpoints: validate -> reserve a place -> encode -> submit -> reply. Also health and metrics.

FastAPI has validated the body when an endpoint is called; `Api.generate` is the way of every request that
generates text, whichever of the endpoints it came to.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from server.api.answers.chat import ChatTranscript
from server.api.answers.models import ChatCompletion, TextCompletion
from server.api.answers.parts import new_reader
from server.api.answers.transcript import AnswerStart, TextTranscript, TranscriptFactory
from server.api.catalog import CatalogApi
from server.api.errors import ErrorBody
from server.api.http.auth import OWNER, client_of
from server.api.http.reply import Reply
from server.api.messages.answers import MessageAnswer
from server.api.messages.errors import MessagesErrorBody
from server.api.messages.schema import MessagesBody
from server.api.messages.stream import MessagesTranscript
from server.api.overview import OverviewApi
from server.api.prepare.generation import check_body, check_ids, check_size, check_total, prompts, sampling
from server.api.prepare.grammar import compiled
from server.api.prepare.lanes import Lane, Lanes
from server.api.prepare.prompts import PromptSource, predicted_ids, source_of, text_source
from server.api.responses.answers import ResponseAnswer, repeated_fields
from server.api.responses.schema import ResponseBody
from server.api.responses.stream import ResponseTranscript
from server.api.schema.generation import ChatBody, CompletionBody, GenerationBody
from server.api.tokenization import TokenizationApi
from server.engine import Thinking
from server.worker import Worker

CHARACTERS_PER_TOKEN = 4
"""A rough measure of a prompt's length in tokens, until it is tokenised and counted."""

Documented = dict[int | str, dict[str, Any]]
EVENTS: dict[str, Any] = {"text/event-stream": {}}
"""The content type of an answer where the body has `stream: true`; otherwise it is JSON."""


@dataclass(frozen=True)
class RequestRules:
    """What holds for every request.

    The most choices of a prompt and the most sequences in all that it may ask for, the seconds after which it is ended
    with an error, whether answers draft for those to the requests of other keys, whether clients may see the
    tokenizer's template and special tokens, and where Grafana is.
    """

    max_choices: int
    max_sequences: int
    timeout: float
    shares_history: bool = False
    shows_tokenizer: bool = False
    grafana_url: str | None = None


class Api:
    """The endpoints over one worker; `lanes` are the threads beside it."""

    def __init__(self, worker: Worker, rules: RequestRules, lanes: Lanes) -> None:
        self.worker = worker
        self.rules = rules
        self.lanes = lanes

    async def chat(self, body: ChatBody, request: Request) -> Response:
        return await self.generate(body, request, source_of(body, "messages"), ChatTranscript)

    async def complete(self, body: CompletionBody, request: Request) -> Response:
        return await self.generate(body, request, text_source(body.prompts, body.suffix or ""), TextTranscript)

    async def respond(self, body: ResponseBody, request: Request) -> Response:
        chat = body.chat
        applied = sampling(chat, self.worker.check_available().checkpoint.sampling)
        repeated = repeated_fields(body, applied)
        source = source_of(chat, "input")
        return await self.generate(chat, request, source, lambda start: ResponseTranscript(start, repeated))

    async def converse(self, body: MessagesBody, request: Request) -> Response:
        return await self.generate(body.chat, request, source_of(body.chat, "messages"), MessagesTranscript)

    async def generate(
        self, body: GenerationBody, request: Request, source: PromptSource, begin: TranscriptFactory
    ) -> Response:
        """Hands a request to the worker; the reply then reads what comes back, for all endpoints alike."""
        served = self.worker.check_available()
        check_body(body, served, self.rules.max_choices)
        num_choices = source.num_prompts * body.choices_per_prompt
        check_size(num_choices, source.longest, served, self.rules.max_sequences)
        # 1) A place among the unfinished requests, before tokenising: a burst that is refused costs next to nothing.
        num_tokens = (source.num_characters + len(body.predicted)) // CHARACTERS_PER_TOKEN
        client = client_of(request.scope)
        ticket = self.worker.reserve(num_choices, num_tokens, self.rules.timeout, client)
        ticket.traceparent = request.headers.get("traceparent")
        try:
            # 2) Tokens and grammar, each in a thread: a long prompt or a large schema must not hold up other requests.
            lane = Lane.of_text(source.num_characters + len(body.predicted))
            encoded = await ticket.in_time(self.lanes.run(lane, source.encode, served))
            check_ids(encoded, source.field, served.vocabulary_size)
            check_total(encoded, body.choices_per_prompt, source.field, served, self.worker.tickets.limits)
            prediction = await ticket.in_time(self.lanes.run(lane, predicted_ids, body.predicted, served))
            thinking = served.codec.thinking_after(encoded[0]) if source.is_chat else Thinking.NONE
            grammar = await ticket.in_time(self.lanes.run(Lane.GRAMMARS, compiled, body, served, thinking))
            # 3) The engine's part begins: one sequence for each choice.
            owner = self.owner(request)
            ready = prompts(body, encoded, served, grammar, owner, prediction, client, thinking)
            self.worker.submit(ticket, ready)
        except BaseException:
            self.worker.release(ticket)
            raise
        start = AnswerStart(
            created=int(time.time()),
            model=served.name,
            system_fingerprint=f"fp_{served.checkpoint.fingerprint[:10]}",
            prompt_tokens=sum(len(ids) for ids in encoded),
            num_prompts=len(encoded),
            num_choices=num_choices,
            vocabulary=None if body.num_logprobs is None else served.codec.vocabulary,
            new_reader=partial(new_reader, thinking, body.toolset, served.codec),
            is_traced=body.is_traced,
        )
        return Reply(self.worker, ticket, begin(start), self.lanes, bool(body.stream), body.streaming)

    def owner(self, request: Request) -> str | None:
        """Whose texts may draft for this one and be its beginning; None: those of all that have none."""
        return None if self.rules.shares_history else getattr(request.state, OWNER, None)

    async def health(self) -> Response:
        """200 as long as the engine's thread lives, also while it loads or drains; else 503: restart the server."""
        is_alive = self.worker.is_alive
        return JSONResponse({"status": "alive" if is_alive else "dead"}, 200 if is_alive else 503)

    async def ready(self) -> Response:
        """200 while requests are taken; else 503 and the reason: loading, draining or dead."""
        reason = self.worker.unavailable
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    async def metrics(self) -> Response:
        return Response(self.worker.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @property
    def router(self) -> APIRouter:
        router = APIRouter()
        errors, others = errors_of(ErrorBody), errors_of(MessagesErrorBody)
        for path, endpoint, answer, refused in (
            ("/v1/chat/completions", self.chat, ChatCompletion, errors),
            ("/v1/completions", self.complete, TextCompletion, errors),
            ("/v1/responses", self.respond, ResponseAnswer, errors),
            ("/v1/messages", self.converse, MessageAnswer, others),
        ):
            documented: Documented = {200: {"model": answer, "content": EVENTS}, **refused}
            router.add_api_route(path, endpoint, methods=["POST"], response_model=None, responses=documented)
        tokenization = TokenizationApi(self.worker, self.lanes, self.rules.timeout)
        router.add_api_route("/v1/messages/count_tokens", tokenization.count, methods=["POST"], responses=others)
        router.add_api_route("/tokenize", tokenization.tokenize, methods=["POST"], responses=errors)
        router.add_api_route("/detokenize", tokenization.detokenize, methods=["POST"], responses=errors)
        CatalogApi(self.worker, self.rules.shows_tokenizer).add_to(router, errors)
        OverviewApi(self.worker, self.rules.grafana_url).add_to(router, errors)
        unhealthy: Documented = {503: {"description": "Not yet, or not any more"}}
        router.add_api_route("/health", self.health, response_model=None, responses=unhealthy)
        router.add_api_route("/ready", self.ready, response_model=None, responses=unhealthy)
        router.add_api_route("/metrics", self.metrics, response_model=None, response_class=PlainTextResponse)
        return router


def errors_of(form: type[BaseModel]) -> Documented:
    """The statuses of errors for the OpenAPI document, in the form of an interface."""
    return {status: {"model": form} for status in (400, 401, 404, 413, 429, 500, 503, 504)}
