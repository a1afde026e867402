"""What a chat template turns into a prompt beside messages: tools, and the variables that some templates know."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.api.schema.base import Body, Text, check_encodable, refusal
from server.api.schema.json_schema import MAX_DEPTH, depth
from server.api.schema.tools import Tools

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
SWITCHES = ("enable_thinking", "thinking")
"""Names that templates have for the variable that turns thinking on or off."""
OWN = frozenset(
    (
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
"""Names that are no variables: what they would say is said by other fields, or not at all."""


class TemplateBody(Body):
    """Fields of chats, and of messages that are to be counted."""

    tools: Tools | None = None
    chat_template_kwargs: Annotated[dict[Text, Any], Field(max_length=64)] | None = None
    reasoning_effort: Effort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None

    @model_validator(mode="after")
    def check_variables(self) -> Self:
        given = self.chat_template_kwargs or {}
        for name in sorted(given.keys() & OWN):
            raise refusal(f"chat_template_kwargs.{name}", "It is no variable of a chat template.")
        if depth(given) > MAX_DEPTH:
            raise refusal("chat_template_kwargs", f"They are nested more than {MAX_DEPTH} levels deep.")
        check_encodable(json.dumps(given, ensure_ascii=False), field="chat_template_kwargs")
        return self

    @model_validator(mode="after")
    def check_beginning(self) -> Self:
        """An answer begins anew, or goes on with the assistant's last message; a prompt has no other end."""
        if self.add_generation_prompt is not None and self.add_generation_prompt is bool(self.continue_final_message):
            raise refusal("add_generation_prompt", "It is the opposite of continue_final_message.")
        return self

    @property
    def variables(self) -> dict[str, Any]:
        """Variables for the template, which passes over those that it does not know."""
        found: dict[str, Any] = {}
        if self.reasoning_effort is not None:
            found = dict.fromkeys(SWITCHES, self.reasoning_effort != "none")
            if self.reasoning_effort != "none":
                found["reasoning_effort"] = self.reasoning_effort
        if self.verbosity is not None:
            found["verbosity"] = self.verbosity
        return found | (self.chat_template_kwargs or {})
