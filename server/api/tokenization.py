"""POST /tokenize and /detokenize in vLLM's form: a prompt to token ids, and token ids to text."""

from collections.abc import Callable
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from server.api.messages.answers import TokenCount
from server.api.messages.schema import CountBody
from server.api.prepare.generation import check_characters, check_model, check_vocabulary
from server.api.prepare.lanes import Lane, Lanes
from server.api.prepare.prompts import PromptSource, chat_source, source_of
from server.api.schema.base import Body, Text, TokenId, refusal
from server.api.schema.messages import Counted, Message, check_continued
from server.api.schema.template import TemplateBody
from server.api.schema.tools import Toolset
from server.api.schema.unsupported import NOT_HONOURED_IN_TOKENIZATION
from server.served_model import ServedModel
from server.tickets import QueueLimits, Tickets
from server.worker import Worker

Result = TypeVar("Result")

LIMITS = QueueLimits(max_sequences=256, max_tokens=1 << 20)
"""Most requests at once, and their characters together; alone, any text that the context could hold is taken."""


class TokenizeBody(TemplateBody):
    """A text, or messages and tools that the chat template turns into one; a request with the same has the same ids."""

    not_honoured = NOT_HONOURED_IN_TOKENIZATION

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1), Counted] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def check_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refusal("prompt", "Give either prompt or messages.")
        if self.messages is not None and self.add_special_tokens:
            raise refusal("add_special_tokens", "Only with prompt: a chat template writes its own special tokens.")
        for name in TemplateBody.model_fields if self.messages is None else ():
            if getattr(self, name):
                raise refusal(name, "Only with messages.")
        if self.messages and self.continue_final_message:
            check_continued(self.messages)
        Toolset.check(self.tools or [], None)
        return self


class DetokenizeBody(Body):
    model: str | None = None
    tokens: list[TokenId]


class Tokens(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]


class Detokenized(BaseModel):
    prompt: str


class TokenizationApi:
    """The endpoints; they need the tokenizer only, so that a busy engine does not delay them.

    They have tickets of their own: long texts wait for each other, and no chat for them.
    """

    def __init__(self, worker: Worker, lanes: Lanes, timeout: float) -> None:
        self.worker = worker
        self.lanes = lanes
        self.timeout = timeout
        self.tickets = Tickets(LIMITS, worker.tickets.on_full, worker.tickets.on_expiry)

    async def tokenize(self, body: TokenizeBody) -> Tokens:
        served = self.worker.check_available()
        check_model(body.model or served.name, served)
        text = body.prompt or ""
        if body.messages is not None:
            toolset = Toolset.of(body.tools or [], None, True)
            source = chat_source(body.messages, "messages", toolset, body.variables, bool(body.continue_final_message))
            ids = await self.chat_ids(source, served)
        else:
            ids = await self.run(len(text), served, served.codec.encode, text, body.add_special_tokens is not False)
        return Tokens(count=len(ids), max_model_len=served.max_length, tokens=ids)

    async def detokenize(self, body: DetokenizeBody) -> Detokenized:
        """The text of the ids; special tokens, `</s>` for instance, are written out, so that none is lost."""
        served = self.worker.check_available()
        check_model(body.model or served.name, served)
        check_vocabulary(body.tokens, "tokens", served.vocabulary_size)
        return Detokenized(prompt=await self.run(len(body.tokens), served, served.codec.vocabulary.decode, body.tokens))

    async def count(self, body: CountBody) -> TokenCount:
        """POST /v1/messages/count_tokens, in Anthropic's form."""
        served = self.worker.check_available()
        check_model(body.model, served)
        ids = await self.chat_ids(source_of(body.chat, "messages"), served)
        return TokenCount(input_tokens=len(ids))

    async def chat_ids(self, source: PromptSource, served: ServedModel) -> list[int]:
        (ids,) = await self.run(source.longest, served, source.encode, served)
        return ids

    async def run(self, size: int, served: ServedModel, work: Callable[..., Result], *arguments: object) -> Result:
        """What the work gives, in its turn; `size` is in characters or tokens."""
        check_characters(size, served)
        ticket = self.tickets.take(1, size, self.timeout)
        try:
            return await ticket.in_time(self.lanes.run(Lane.of_text(size), work, *arguments))
        finally:
            self.tickets.close(ticket)
