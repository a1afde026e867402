"""What the server has: its model and what that can do, versions, the tokenizer; and why it makes no embeddings."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from server.api.answers.drafts import DraftCard
from server.api.answers.models import Capabilities, ModelCard, ModelList
from server.api.errors import BadRequestError
from server.api.prepare.generation import check_model
from server.served_model import ServedModel
from server.telemetry.metrics import own_version
from server.worker import Worker

NO_EMBEDDINGS = (
    "This server generates text and makes no embeddings: the hidden states of such a model are no good measure of "
    "likeness. Serve a model that was trained for them beside it."
)


class Version(BaseModel):
    version: str


class TokenizerInfo(BaseModel):
    """What a client needs to write prompts itself."""

    tokenizer_class: str
    vocab_size: int
    special_tokens: dict[str, Any]
    chat_template: str


class CatalogApi:
    """The endpoints; `shows_tokenizer` says whether chat template and special tokens are shown."""

    def __init__(self, worker: Worker, shows_tokenizer: bool) -> None:
        self.worker = worker
        self.shows_tokenizer = shows_tokenizer

    async def models(self) -> ModelList:
        return ModelList(data=[self.card(self.worker.check_available())])

    async def model(self, name: str) -> ModelCard:
        served = self.worker.check_available()
        check_model(name, served)
        return self.card(served)

    def card(self, served: ServedModel) -> ModelCard:
        codec = served.codec
        return ModelCard(
            id=served.name,
            created=served.created,
            max_model_len=served.max_length,
            context_length=served.max_length,
            revision=served.checkpoint.revision,
            capabilities=Capabilities(
                chat=bool(codec.template),
                tools="native" if codec.tool_format.is_native else "described",
                thinking=codec.has_thoughts,
                infill=codec.infill_ids is not None,
            ),
            domains=served.domains,
            drafts={domain: DraftCard.of(draft) for domain, draft in served.drafts.items()},
        )

    async def version(self) -> Version:
        return Version(version=own_version())

    async def tokenizer_info(self) -> TokenizerInfo:
        codec = self.worker.check_available().codec
        return TokenizerInfo(
            tokenizer_class=type(codec.tokenizer).__name__,
            vocab_size=len(codec.tokenizer),
            special_tokens=codec.special_tokens,
            chat_template=codec.template,
        )

    async def embed(self, request: Request) -> None:
        raise BadRequestError(NO_EMBEDDINGS, code="unsupported_endpoint")

    def add_to(self, router: APIRouter, errors: dict[int | str, dict[str, Any]]) -> None:
        router.add_api_route("/v1/models", self.models, responses=errors)
        router.add_api_route("/v1/models/{name:path}", self.model, responses=errors)
        router.add_api_route("/version", self.version)
        if self.shows_tokenizer:
            router.add_api_route("/tokenizer_info", self.tokenizer_info, responses=errors)
        router.add_api_route("/v1/embeddings", self.embed, methods=["POST"], include_in_schema=False)
