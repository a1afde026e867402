"""What all request bodies share: exact types, known fields, encodable text, and errors that name the field."""

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

NoEffect = dict[str, tuple[Any, ...]]
"""Fields that are not honoured, with the values at which they have no effect."""


class Body(BaseModel):
    """Exact types, no unknown fields, and the fields of `not_honoured` at their values without effect only."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    not_honoured: ClassVar[NoEffect] = {}
    reasons: ClassVar[dict[str, str]] = {}
    """What to do instead, for fields of `not_honoured` that have something in their place."""

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
    """Tag of the branch of a union whose errors are reported."""
    return "<list>" if isinstance(value, list) else "<text>"


def check_encodable(text: str, *, field: str = "") -> str:
    """JSON can carry lone surrogates, which no tokenizer accepts; `field` is where, inside what is validated."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PydanticCustomError("surrogate", "Text should not contain lone surrogates", {"field": field}) from error
    return text


Text = Annotated[str, AfterValidator(check_encodable)]

TokenId = Annotated[int, Field(ge=0)]


def missing(field: str) -> PydanticCustomError:
    """The error of a field that only some values of others require."""
    return PydanticCustomError("missing", "Field required", {"field": field})


def invalid(field: str, message: str) -> PydanticCustomError:
    """A value that is wrong in itself, from a validator that knows where."""
    return PydanticCustomError("invalid", "{reason}", {"field": field, "reason": message})


def refusal(field: str, message: str) -> PydanticCustomError:
    """An error that names a field, from a validator that sees several."""
    return PydanticCustomError("unsupported", "{reason}", {"field": field, "reason": message})
