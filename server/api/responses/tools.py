"""Tools in the form of responses, which is flatter than that of chats."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.api.schema.base import Body, NoEffect, refusal
from server.api.schema.tools import (
    AllowedChoice,
    AllowedTools,
    FunctionChoice,
    FunctionDefinition,
    FunctionName,
    NamedTool,
    Tool,
    ToolChoice,
    kind_of_choice,
)


class FunctionTool(FunctionDefinition):
    """A function; tools that OpenAI's own servers run, as `web_search`, are refused."""

    not_honoured: ClassVar[NoEffect] = {
        "allowed_callers": (None, [], ["direct"]),
        "async": (None, False),
        "defer_loading": (None, False),
        "output_schema": (None,),
    }
    type: Literal["function"]

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("type", "function") != "function":
            raise refusal("type", "This server runs no tools of its own; it takes functions, which the client runs.")
        return data

    @property
    def as_chat(self) -> Tool:
        fields = {name: getattr(self, name) for name in FunctionDefinition.model_fields}
        return Tool(type="function", function=FunctionDefinition(**fields))

    @property
    def repeated(self) -> dict[str, Any]:
        """The tool as the answer repeats it."""
        return self.model_dump()


class FunctionToolName(Body):
    type: Literal["function"]
    name: FunctionName

    @property
    def as_chat(self) -> NamedTool:
        return NamedTool(type="function", function=FunctionChoice(name=self.name))


class AllowedFunctions(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[FunctionToolName], Field(min_length=1, max_length=128)]

    @property
    def as_chat(self) -> AllowedChoice:
        allowed = AllowedTools(mode=self.mode, tools=[tool.as_chat for tool in self.tools])
        return AllowedChoice(type="allowed_tools", allowed_tools=allowed)


FunctionToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<word>")]
    | Annotated[FunctionToolName, Tag("<tool>")]
    | Annotated[AllowedFunctions, Tag("<allowed>")],
    Discriminator(kind_of_choice),
]


def chat_choice(choice: FunctionToolChoice | None) -> ToolChoice | None:
    """The choice as chats have it."""
    return choice.as_chat if isinstance(choice, FunctionToolName | AllowedFunctions) else choice
