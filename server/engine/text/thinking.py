"""How a model writes down its thinking before an answer, and whether it does so after a prompt."""

import re
from enum import Enum

THINK_BEGIN, THINK_END = "<think>", "</think>"
CLOSING = f"\n{THINK_END}\n\n"
"""What ends a thinking that has used up its budget."""


class Thinking(Enum):
    """Where an answer stands when it begins; `POSSIBLE` thinking is opened by the model itself, if at all."""

    NONE = "none"
    POSSIBLE = "possible"
    OPEN = "open"


def thinks(template: str) -> bool:
    """Whether a chat template tells of a model that thinks."""
    return THINK_END in template


def thinking_after(prompt: str) -> Thinking:
    """Where an answer to this prompt begins, of a model that thinks: templates may open its thinking, or close it."""
    end = re.search(rf"({THINK_BEGIN}|{THINK_END})\s*$", prompt)
    if end is None:
        return Thinking.POSSIBLE
    return Thinking.OPEN if end[1] == THINK_BEGIN else Thinking.NONE
