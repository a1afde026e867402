"""Calls of tools in an answer: whole ones, and the deltas from which a stream builds them up."""

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer


class CalledFunction(BaseModel):
    """The function that is called; `arguments` is a JSON object in a string."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Sparse(BaseModel):
    """A model whose JSON leaves out the fields without a value, as OpenAI's deltas do."""

    @model_serializer(mode="wrap")
    def without_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class FunctionDelta(Sparse):
    name: str | None = None
    arguments: str


class ToolCallDelta(Sparse):
    """Further text of a call's arguments; the first delta of a call also has its id and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
