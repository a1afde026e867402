"""Calls of tools in an answer, whole and as a stream adds to them."""

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class CalledFunction(BaseModel):
    """Its arguments are JSON in a string."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Sparse(BaseModel):
    """Fields without a value are left out, as OpenAI does."""

    @model_serializer(mode="wrap")
    def without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class FunctionDelta(Sparse):
    name: str | None = None
    arguments: str


class ToolCallDelta(Sparse):
    """New arguments of a call; its id and name come with the first of them."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
