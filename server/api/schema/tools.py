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


class AllowedTools(Body):
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=128)]


class AllowedChoice(Body):
    """Some of the tools: the prompt shows all of them, the answer may call these."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def kind_of_choice(value: Any) -> str:
    """Tag of a `tool_choice`: a word, one tool, or several that are allowed."""
    if isinstance(value, str):
        return "<word>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<tool>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[NamedTool, Tag("<tool>")]
    | Annotated[AllowedChoice, Tag("<allowed>")],
    Discriminator(kind_of_choice),
]


class CalledFunction(Body):
    """A call's function, and its arguments as the model wrote them: JSON, but for one that was cut short."""

    name: Annotated[Text, Field(min_length=1, max_length=256)]
    arguments: Text

    @model_validator(mode="after")
    def check_arguments(self) -> Self:
        try:
            is_deep = depth(self.values) > MAX_DEPTH
        except RecursionError:
            is_deep = True
        if is_deep:
            raise invalid("arguments", f"Arguments are nested more than {MAX_DEPTH} levels deep")
        check_encodable(json.dumps(self.values, ensure_ascii=False), field="arguments")
        return self

    @property
    def values(self) -> Any:
        """The arguments for a chat template: an object, or the text that is none; clients send "" for no arguments."""
        try:
            return json.loads(self.arguments or "{}")
        except ValueError:
            return self.arguments


class ToolCall(Body):
    """A call that an earlier answer made, sent back as part of the conversation, with its `index` in the stream."""

    index: Annotated[int, Field(ge=0)] | None = None
    id: Annotated[Text, Field(max_length=256)]
    type: Literal["function"]
    function: CalledFunction

    @property
    def for_template(self) -> dict[str, Any]:
        """The call as chat templates want it: with its arguments as an object rather than as JSON in a string."""
        function = {"name": self.function.name, "arguments": self.function.values}
        return {"id": self.id, "type": "function", "function": function}


@dataclass(frozen=True)
class Toolset:
    """The tools of one request: the prompt shows those `offered`, the answer may call those `callable`.

    They differ where `tool_choice` names some tools. `must_call` allows no other text, `is_parallel` several calls.
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
        for tool in tool_choice.allowed_tools.tools if isinstance(tool_choice, AllowedChoice) else ():
            if tool.function.name not in names:
                reason = f"'{tool.function.name}' is not the name of one of the tools"
                raise invalid("tool_choice.allowed_tools.tools", reason)
        if tool_choice == "required" and not tools:
            raise refusal("tool_choice", "Only with tools.")

    @classmethod
    def of(cls, tools: Sequence[Tool], tool_choice: ToolChoice | None, is_parallel: bool) -> "Toolset | None":
        """None where no tool may be called; the prompt then does not mention any."""
        if not tools or tool_choice == "none":
            return None
        functions = {tool.function.name: tool.function for tool in tools}
        if isinstance(tool_choice, NamedTool):
            return cls(tuple(tools), (functions[tool_choice.function.name],), True, False)
        if isinstance(tool_choice, AllowedChoice):
            allowed = tool_choice.allowed_tools
            names = dict.fromkeys(tool.function.name for tool in allowed.tools)
            return cls(tuple(tools), tuple(functions[name] for name in names), allowed.mode == "required", is_parallel)
        return cls(tuple(tools), tuple(functions.values()), tool_choice == "required", is_parallel)
