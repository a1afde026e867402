"""Tools in a request: the tools on offer, `tool_choice`, and the calls that earlier turns made."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, Echoed, Text, check_encodable, invalid, refusal
from server.api.schema.json_schema import MAX_CHARACTERS, MAX_DEPTH, check_schema, depth

FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


class FunctionDefinition(Body):
    """A function with the schema of its parameters.

    With `strict`, a keyword that cannot be enforced (`not`, `uniqueItems`) is refused; without, it is passed over.
    """

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
    cache_control: Echoed = None

    @property
    def for_template(self) -> dict[str, Any]:
        """The tool as chat templates show it to the model: name, description, parameters."""
        function = self.function
        shown: dict[str, Any] = {"name": function.name}
        if function.description is not None:
            shown["description"] = function.description
        return {"type": "function", "function": {**shown, "parameters": function.parameters or NO_PARAMETERS}}


Tools = Annotated[list[Tool], Field(max_length=128)]


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
    """A call that an earlier answer made, sent back as part of the conversation, with its `index` in the stream."""

    index: Annotated[int, Field(ge=0)] | None = None
    id: Annotated[Text, Field(max_length=256)]
    type: Literal["function"]
    function: CalledFunction

    @property
    def for_template(self) -> dict[str, Any]:
        """The call as chat templates want it: with its arguments as an object rather than as JSON in a string."""
        function = {"name": self.function.name, "arguments": json.loads(self.function.arguments)}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Toolset:
    """The tools of one request: the prompt shows those `offered`, the answer may call those `callable`.

    They differ where `tool_choice` names one tool. `must_call` allows no other text, `is_parallel` several calls.
    """

    offered: tuple[Tool, ...]
    callable: tuple[FunctionDefinition, ...]
    must_call: bool
    is_parallel: bool

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.callable)

    @staticmethod
    def check(tools: Sequence[Tool], tool_choice: ToolChoice | None) -> None:
        """Raises a validation error that names the field at fault: two tools of one name, for instance."""
        names = [tool.function.name for tool in tools]
        if sum(len(json.dumps(tool.function.parameters)) for tool in tools) > MAX_CHARACTERS:
            raise invalid("tools", f"Their parameters have more than {MAX_CHARACTERS:,} characters together")
        if len(set(names)) < len(names):
            raise invalid("tools", "Tools have different names")
        if isinstance(tool_choice, NamedTool) and tool_choice.function.name not in names:
            raise invalid("tool_choice.function.name", "It is not the name of one of the tools")
        if tool_choice == "required" and not tools:
            raise refusal("tool_choice", "Only with tools.")

    @classmethod
    def of(cls, tools: Sequence[Tool], tool_choice: ToolChoice | None, is_parallel: bool) -> "Toolset | None":
        """None where no tool may be called; the prompt then does not mention any."""
        if not tools or tool_choice == "none":
            return None
        functions = tuple(tool.function for tool in tools)
        if isinstance(tool_choice, NamedTool):
            named = tool_choice.function.name
            return cls(tuple(tools), tuple(f for f in functions if f.name == named), True, False)
        return cls(tuple(tools), functions, tool_choice == "required", is_parallel)
