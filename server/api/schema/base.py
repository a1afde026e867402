"""The base of all request bodies: exact types, no unknown fields, encodable text, and errors that name the field."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NoEffect = dict[str, tuple[Any, ...]]
"""Fields that this server does not honour, each with the values at which it has no effect: `{"best_of": (None, 1)}`."""


class Body(BaseModel):
    """An object in a request: "5" is no number, unknown fields are refused.

    A field of `not_honoured` is accepted at a value without effect and refused at any other, never ignored.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    not_honoured: ClassVar[NoEffect] = {}
    reasons: ClassVar[dict[str, str]] = {}
    """Advice for the error of a field in `not_honoured`, where there is another way: "ask for them with n"."""

    @model_validator(mode="before")
    @classmethod
    def drop_without_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name in cls.not_honoured.keys() & data.keys():
            if data[name] not in cls.not_honoured[name]:
                reason = cls.reasons.get(name, "This server does not support this.")
                raise refusal(name, reason)
        return {name: value for name, value in data.items() if name not in cls.not_honoured}


def text_or_list(value: Any) -> str:
    """Tag of a field that is a text or a list; only the errors of the branch with this tag are reported."""
    return "<list>" if isinstance(value, list) else "<text>"


def check_encodable(text: str, *, field: str = "") -> str:
    """Refuses lone surrogates, as in "\\ud800": JSON can carry them, but no tokenizer accepts them.

    `field` is the place inside the value that is being validated.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "Text should not contain lone surrogates", {"field": field}) from error
    return text


Text = Annotated[str, AfterValidator(check_encodable)]

Identifier = Annotated[Text, Field(max_length=512)] | None

Echoed = dict[str, Any] | None
"""An object that clients send along, as `cache_control`, and that changes nothing."""

TokenId = Annotated[int, Field(ge=0)]


def missing(field: str) -> PydanticCustomError:
    """The error for a field that is missing only because of another one, as `tool_call_id` of a message of a tool."""
    return PydanticCustomError("missing", "Field required", {"field": field})


def invalid(field: str, message: str) -> PydanticCustomError:
    """The error for a wrong value: "Invalid value for 'tools': Tools have different names."."""
    return PydanticCustomError("invalid", "{reason}", {"field": field, "reason": message})


def refusal(field: str, message: str) -> PydanticCustomError:
    """The error for a value that this server does not support, or not together with the other fields."""
    return PydanticCustomError("unsupported", "{reason}", {"field": field, "reason": message})
