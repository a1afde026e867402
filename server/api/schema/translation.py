"""Bodies of other forms, Anthropic's for instance, that stand for a chat, and whose mistakes have their own names."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import ValidationError, model_validator
from pydantic_core import PydanticCustomError

from server.api.schema.base import Body, invalid
from server.api.schema.generation import ChatBody


class TranslatedBody(Body):
    """A body that stands for a chat."""

    own_names: ClassVar[Mapping[str, str]] = {}
    """Fields of this body by those of the chat, where names differ: `{"messages": "input"}`."""

    @property
    @abstractmethod
    def chat(self) -> ChatBody:
        """The chat with the same prompt and answer; raises a validation error where that would be none."""

    @model_validator(mode="after")
    def check_chat(self) -> Self:
        """What is wrong only for the chat as a whole, as two tools of one name."""
        try:
            self.chat  # noqa: B018
        except ValidationError as error:
            raise translated(error, self.own_names) from error
        return self


def translated(error: ValidationError, names: Mapping[str, str]) -> PydanticCustomError:
    """The first mistake of a chat; `names` are the fields of the body that it was made of, by those of the chat."""
    first = error.errors()[0]
    path = [*map(str, first["loc"]), str(first.get("ctx", {}).get("field", ""))]
    field = next((part for part in path if part), "")
    return invalid(names.get(field, field), first["msg"])
