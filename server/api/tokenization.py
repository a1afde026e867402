"""POST /tokenize and /detokenize in vLLM's form: a prompt to token ids, and token ids to text."""

import asyncio
from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from server.api.prepare.generation import check_model, check_vocabulary
from server.api.schema.base import Body, Text, TokenId, refusal
from server.api.schema.messages import Message
from server.worker import Worker


class TokenizeBody(Body):
    """A text, or messages that the chat template turns into one; a request with the same has the same ids."""

    model: str | None = None
    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def check_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise refusal("prompt", "Give either prompt or messages.")
        if self.messages is not None and self.add_special_tokens:
            raise refusal("add_special_tokens", "Only with prompt: a chat template writes its own special tokens.")
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
    """Both endpoints; they need the tokenizer only, so that a busy engine does not delay them."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    async def tokenize(self, body: TokenizeBody) -> Tokens:
        served = self.worker.check_available()
        check_model(body.model or served.name, served)
        codec = served.codec
        if body.messages is not None:
            ids = await asyncio.to_thread(codec.encode_chat, [message.for_template for message in body.messages])
        else:
            ids = await asyncio.to_thread(codec.encode, body.prompt or "", body.add_special_tokens is not False)
        return Tokens(count=len(ids), max_model_len=served.max_length, tokens=ids)

    async def detokenize(self, body: DetokenizeBody) -> Detokenized:
        """The text of the ids; special tokens, `</s>` for instance, are written out, so that none is lost."""
        served = self.worker.check_available()
        check_model(body.model or served.name, served)
        check_vocabulary(body.tokens, "tokens", served.vocabulary_size)
        return Detokenized(prompt=await asyncio.to_thread(served.codec.vocabulary.decode, body.tokens))
