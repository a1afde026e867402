"""vLLM's `structured_outputs`: an answer that is one of some texts, matches an expression, or follows a grammar."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from server.api.schema.base import Body, NoEffect, Text, invalid, refusal
from server.api.schema.json_schema import MAX_CHARACTERS, MAX_PATTERN, MAX_REPEATS, check_schema, num_repeats
from server.api.schema.response_format import AnswerForm


class StructuredOutputs(Body):
    """Exactly one of its fields says what the answer is; `grammar` is in llguidance's form of Lark."""

    not_honoured: ClassVar[NoEffect] = {
        "disable_additional_properties": (None, False),
        "disable_any_whitespace": (None, False),
        "disable_fallback": (None, True, False),
        "structural_tag": (None,),
        "whitespace_pattern": (None,),
    }
    content: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    json_object: bool | None = None
    choice: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=1024)] | None = None
    regex: Annotated[Text, Field(min_length=1, max_length=MAX_PATTERN)] | None = None
    grammar: Annotated[Text, Field(min_length=1, max_length=MAX_CHARACTERS)] | None = None

    @model_validator(mode="after")
    def check_one(self) -> Self:
        given = [self.content, self.json_object or None, self.choice, self.regex, self.grammar]
        if sum(value is not None for value in given) != 1:
            raise refusal("", "Give exactly one of json, json_object, choice, regex and grammar.")
        if self.content is not None:
            check_schema(self.content, "json")
        if self.regex is not None and num_repeats(self.regex) > MAX_REPEATS:
            raise invalid("regex", f"It has more than {MAX_REPEATS:,} counted repetitions, multiplied if nested")
        return self

    @property
    def form(self) -> AnswerForm:
        return AnswerForm(
            schema={"type": "object"} if self.json_object else self.content,
            choices=tuple(self.choice or ()),
            regex=self.regex,
            lark=self.grammar,
        )
