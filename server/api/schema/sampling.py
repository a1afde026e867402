"""Fields that all requests for text have in common, among them this server's own `speculation`."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Self

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict

from server.api.schema.base import Body, Identifier, Text, TokenId, invalid, refusal, text_or_list
from server.engine import MAX_DRAFT, method_named, methods
from server.generation import Operation

StopString = Annotated[Text, Field(min_length=1, max_length=1024)]

BiasedId = Annotated[str, Field(pattern=r"^(0|[1-9]\d{0,8})$")]
"""A token id as a key of a JSON object."""


def check_method(name: str) -> str:
    try:
        return method_named(name).name
    except ValueError as error:
        raise invalid("", str(error)) from error


def name_methods(schema: JsonDict) -> None:
    """Lists the registered methods in the OpenAPI document."""
    schema["enum"] = list(methods())


MethodName = Annotated[str, AfterValidator(check_method), Field(json_schema_extra=name_methods)]


class Speculation(Body):
    """The drafting of this request's tokens, an extension of OpenAI's body; it changes the speed, never the text.

    With `trace` the answer says where each token came from.
    """

    method: MethodName | None = None
    max_draft: Annotated[int, Field(ge=0, le=MAX_DRAFT)] | None = None
    domain: str | None = None
    trace: bool | None = None


class SamplingBody(Body):
    """Fields of chats, text completions and responses: sampling, ends of the answer, streaming, who asks."""

    operation: ClassVar[Operation]
    has_trace: ClassVar[bool] = False
    """Whether answers can have a trace."""
    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    logit_bias: Annotated[dict[BiasedId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=1024)] | None = (
        None
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    stop: (
        Annotated[
            Annotated[StopString, Tag("<text>")] | Annotated[list[StopString], Field(max_length=16), Tag("<list>")],
            Discriminator(text_or_list),
        ]
        | None
    ) = None
    stream: bool | None = None
    speculation: Speculation | None = None
    user: Identifier = None
    safety_identifier: Identifier = None
    metadata: dict[Text, Text] | None = None
    store: bool | None = None

    @model_validator(mode="after")
    def check_end(self) -> Self:
        if self.ignore_eos and self.is_constrained and not self.stop_token_ids:
            raise refusal("ignore_eos", "A constrained answer ends where its grammar does; give stop_token_ids.")
        return self

    @model_validator(mode="after")
    def check_trace(self) -> Self:
        if self.is_traced and not self.has_trace:
            raise refusal("speculation.trace", "Only in chat completions and text completions.")
        return self

    @property
    def is_traced(self) -> bool:
        return bool(self.speculation and self.speculation.trace)

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    @abstractmethod
    def is_constrained(self) -> bool:
        """Whether the answer has to follow a grammar: JSON, or calls of tools."""
