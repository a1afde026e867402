"""Tools in a request: those offered, which of them are to be called, and calls of earlier turns."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Text, check_encodable, invalid, refusal
from server.api.schema.json_schema import MAX_CHARACTERS, MAX_DEPTH, check_schema, depth

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionDefinition(Body):
    """A strict one has parameters that can be enforced to the letter; of others, what can be is enforced."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @model_validator(mode="after")
    def check_parameters(self) -> Self:
        if self.parameters is not None:
            if self.parameters.get("type", "object") != "object":
                raise invalid("parameters.type", "Parameters are a schema of type object")
            check_schema(self.parameters, "parameters", is_lenient=not self.strict)
        return self

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        return {"type": "object", **(NO_PARAMETERS if self.parameters is None else self.parameters)}


class Tool(Body):
    type: Literal["function"]
    function: FunctionDefinition

    @property
    def for_template(self) -> dict[str, Any]:
        """As templates show it to the model; `strict` is no matter of the model."""
        function = self.function
        shown: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            shown["description"] = function.description
        return {"type": "function", "function": {**shown, "parameters": function.parameters or NO_PARAMETERS}}


class FunctionChoice(Body):
    name: FunctionName


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionChoice


def word_or_tool(value: Any) -> str:
    return "<word>" if isinstance(value, str) else "<tool>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")] | Annotated[NamedTool, Tag("<tool>")],
    Discriminator(word_or_tool),
]


class CalledFunction(Body):
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Text

    @model_validator(mode="after")
    def check_arguments(self) -> Self:
        try:
            arguments = json.loads(self.arguments)
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            raise invalid("arguments", "Arguments are a JSON object in a string")
        if depth(arguments) > MAX_DEPTH:
            raise invalid("arguments", f"Arguments are nested more than {MAX_DEPTH} levels deep")
        check_encodable(json.dumps(arguments, ensure_ascii=False), field="arguments")
        return self


class ToolCall(Body):
    """A call as an earlier answer had it."""

    id: Annotated[Text, Field(max_length=256)]
    type: Literal["function"]
    function: CalledFunction

    @property
    def for_template(self) -> dict[str, Any]:
        """With its arguments as an object, as templates want them."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Toolset:
    """The tools that an answer may call, and whether it must call one; several where `is_parallel`."""

    offered: tuple[Tool, ...]
    callable: tuple[FunctionDefinition, ...]
    must_call: bool
    is_parallel: bool

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.callable)

    @staticmethod
    def check(tools: Sequence[Tool], choice: ToolChoice | None) -> None:
        """Raises the error of the field at fault."""
        names = [tool.function.name for tool in tools]
        if sum(len(json.dumps(tool.function.parameters)) for tool in tools) > MAX_CHARACTERS:
            raise invalid("tools", f"Their parameters have more than {MAX_CHARACTERS:,} characters together")
        if len(set(names)) < len(names):
            raise invalid("tools", "Tools have different names")
        if isinstance(choice, NamedTool) and choice.function.name not in names:
            raise invalid("tool_choice.function.name", "It is not the name of one of the tools")
        if choice == "required" and not tools:
            raise refusal("tool_choice", "Only with tools.")

    @classmethod
    def of(cls, tools: Sequence[Tool], choice: ToolChoice | None, is_parallel: bool) -> "Toolset | None":
        """None where no tool may be called; the model does not hear of any then."""
        if not tools or choice == "none":
            return None
        functions = tuple(tool.function for tool in tools)
        if isinstance(choice, NamedTool):
            named = choice.function.name
            return cls(tuple(tools), tuple(f for f in functions if f.name == named), True, False)
        return cls(tuple(tools), functions, choice == "required", is_parallel)
