"""The form that a request asks of its answer: any text, any JSON object, or JSON of a schema."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.schema.base import Body, Text, missing, refusal
from server.api.schema.json_schema import check_schema


class JsonSchema(Body):
    """A named schema; the answer follows it to the letter whether or not it is `strict`."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: Text | None = None
    content: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None

    @model_validator(mode="after")
    def check_content(self) -> Self:
        check_schema(self.content, "schema")
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
    def schema_of_answer(self) -> dict[str, Any] | None:
        """The schema that the answer must follow; None where any text will do."""
        if self.json_schema:
            return self.json_schema.content
        return {"type": "object"} if self.type == "json_object" else None
