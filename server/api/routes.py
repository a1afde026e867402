"""The endpoints: validate -> reserve a place -> encode -> submit -> reply. Also models, health and metrics."""

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.api.answers.chat import ChatTranscript
from server.api.answers.models import ChatCompletion, ModelCard, ModelList, TextCompletion
from server.api.answers.tool_parser import CallReader
from server.api.answers.transcript import Form, TextTranscript
from server.api.errors import ErrorBody
from server.api.http.reply import Reply
from server.api.prepare.generation import check_body, check_ids, check_model, prompts, sampling
from server.api.prepare.grammar import compiled
from server.api.prepare.prompts import PromptSource, chat_source, text_source
from server.api.responses.answers import ResponseAnswer, echo
from server.api.responses.schema import ResponseBody
from server.api.responses.stream import ResponseTranscript
from server.api.schema.generation import ChatBody, CompletionBody, GenerationBody
from server.api.tokenization import TokenizationApi
from server.served_model import ServedModel
from server.worker import Worker

CHARACTERS_PER_TOKEN = 4
"""A rough measure for a place in the queue, until the prompt is tokenised and counted."""

Documented = dict[int | str, dict[str, Any]]
EVENTS: dict[str, Any] = {"text/event-stream": {}}
"""What an answer is in place of JSON where the body has `stream: true`."""


@dataclass(frozen=True)
class RequestLimits:
    """What one request may ask for, and for how many seconds it may take."""

    max_choices: int
    timeout: float


class Api:
    """The endpoints over one worker; it holds no state of its own."""

    def __init__(self, worker: Worker, limits: RequestLimits) -> None:
        self.worker = worker
        self.limits = limits

    async def chat(self, body: ChatBody) -> Response:
        form: Form = ChatTranscript
        if tools := body.toolset:
            written = self.worker.check_available().codec.tool_format
            form = partial(ChatTranscript, new_reader=partial(CallReader, written, tools.names))
        return await self.generate(body, chat_source(body.messages, "messages", tools), form)

    async def complete(self, body: CompletionBody) -> Response:
        return await self.generate(body, text_source(body.prompts), TextTranscript)

    async def respond(self, body: ResponseBody) -> Response:
        chat = body.as_chat
        applied = sampling(chat, self.worker.check_available().checkpoint.defaults)
        form = partial(ResponseTranscript, echo(body, applied))
        return await self.generate(chat, chat_source(chat.messages, "input"), form)

    async def generate(self, body: GenerationBody, source: PromptSource, form: Form) -> Response:
        """Takes a place before tokenising, so that a burst of requests costs nothing where it is refused."""
        served = self.worker.check_available()
        check_body(body, served, self.limits.max_choices)
        num_choices = source.num_prompts * body.choices_per_prompt
        num_tokens = source.num_characters // CHARACTERS_PER_TOKEN
        ticket = self.worker.reserve(num_choices, num_tokens, self.limits.timeout)
        try:
            encoded = await asyncio.to_thread(source.encode, served)
            check_ids(encoded, source.field, served.vocabulary_size)
            grammar = await asyncio.to_thread(compiled, body, served)
            self.worker.submit(ticket, prompts(body, encoded, served, grammar))
        except BaseException:
            self.worker.release(ticket)
            raise
        head = {
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": f"fp_{served.checkpoint.fingerprint[:10]}",
        }
        vocabulary = None if body.num_logprobs is None else served.codec.vocabulary
        transcript = form(head, sum(len(ids) for ids in encoded), num_choices, vocabulary)
        return Reply(self.worker, ticket, transcript, bool(body.stream), body.includes_usage)

    async def models(self) -> ModelList:
        return ModelList(data=[self.card(self.worker.check_available())])

    async def model(self, name: str) -> ModelCard:
        served = self.worker.check_available()
        check_model(name, served)
        return self.card(served)

    def card(self, served: ServedModel) -> ModelCard:
        return ModelCard(
            id=served.name,
            created=served.created,
            max_model_len=served.max_length,
            domains=served.domains,
        )

    async def health(self) -> Response:
        """Alive: 200 as long as the engine's thread lives, while it loads and drains as well."""
        is_alive = self.worker.is_alive
        return JSONResponse({"status": "alive" if is_alive else "dead"}, 200 if is_alive else 503)

    async def ready(self) -> Response:
        """Ready: 200 while requests are taken."""
        reason = self.worker.unavailable
        return JSONResponse({"status": reason or "ready"}, 503 if reason else 200)

    async def metrics(self) -> Response:
        return Response(self.worker.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @property
    def router(self) -> APIRouter:
        router = APIRouter()
        errors: Documented = {status: {"model": ErrorBody} for status in (400, 401, 404, 413, 429, 500, 503, 504)}
        for path, endpoint, answer in (
            ("/v1/chat/completions", self.chat, ChatCompletion),
            ("/v1/completions", self.complete, TextCompletion),
            ("/v1/responses", self.respond, ResponseAnswer),
        ):
            documented: Documented = {200: {"model": answer, "content": EVENTS}, **errors}
            router.add_api_route(path, endpoint, methods=["POST"], response_model=None, responses=documented)
        tokenization = TokenizationApi(self.worker)
        router.add_api_route("/tokenize", tokenization.tokenize, methods=["POST"], responses=errors)
        router.add_api_route("/detokenize", tokenization.detokenize, methods=["POST"], responses=errors)
        router.add_api_route("/v1/models", self.models, responses=errors)
        router.add_api_route("/v1/models/{name:path}", self.model, responses=errors)
        unhealthy: Documented = {503: {"description": "Not yet, or not any more"}}
        router.add_api_route("/health", self.health, response_model=None, responses=unhealthy)
        router.add_api_route("/ready", self.ready, response_model=None, responses=unhealthy)
        router.add_api_route("/metrics", self.metrics, response_model=None, response_class=PlainTextResponse)
        return router
