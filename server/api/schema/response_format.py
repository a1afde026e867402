"""The form that a request asks of its answer: any text, any JSON object, or JSON of a schema."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.schema.base import Body, Text, missing, refusal
from server.api.schema.json_schema import check_schema


@dataclass(frozen=True)
class AnswerForm:
    """What an answer has to be: JSON of a schema, one of some texts, or what an expression or a grammar says."""

    schema: dict[str, Any] | None = None
    is_lenient: bool = False
    choices: tuple[str, ...] = ()
    regex: str | None = None
    lark: str | None = None


class JsonSchema(Body):
    """A named schema; the answer follows it to the letter, unless `strict: false` leaves the rest to the model."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    content: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None

    @property
    def is_lenient(self) -> bool:
        """Whether keywords that cannot be enforced are passed over rather than refused."""
        return self.strict is False

    @model_validator(mode="after")
    def check_content(self) -> Self:
        check_schema(self.content, "schema", self.is_lenient)
        return self


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def check_type(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise missing("json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise refusal("json_schema", "Only with type: json_schema.")
        return self

    @property
    def form(self) -> AnswerForm | None:
        """None where any text will do."""
        if self.json_schema:
            return AnswerForm(self.json_schema.content, self.json_schema.is_lenient)
        return AnswerForm({"type": "object"}) if self.type == "json_object" else None
