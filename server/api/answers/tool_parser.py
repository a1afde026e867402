"""Finds the calls of tools in an answer's text, which comes piece by piece; the rest is content.

`Sure.<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>` has the content `Sure.` and a call of `add`.
A call's arguments are passed on as they come, word for word. Text that begins like a call and is none stays
content, so that nothing is lost.
"""

import json
import re
import uuid
from collections.abc import Collection
from enum import Enum
from typing import NamedTuple

from server.engine import ToolFormat, held_back

HEAD = re.compile(r'\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
BETWEEN = " \t\r\n,;[]"
"""Characters that may stand between calls."""


class Part(NamedTuple):
    """New content, or a thought; or new arguments of call number `call`, with whose first come its `name` and `id`."""

    text: str
    call: int | None = None
    name: str | None = None
    id: str | None = None
    is_thought: bool = False


class State(Enum):
    CONTENT = "content"
    BETWEEN = "between calls, or before their marker's end"
    ARGUMENTS = "inside a call's arguments"
    REST = "after them, before the call's last brace"
    PLAIN = "content to the end"


class Braces:
    """Finds the last brace of a JSON object that comes in pieces; braces in strings do not count."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.is_string = self.is_escaped = False

    def end_in(self, text: str) -> int | None:
        """Length of the part of `text` that belongs to the object; None where the object goes on after `text`."""
        for i, character in enumerate(text):
            if self.is_escaped:
                self.is_escaped = False
            elif self.is_string:
                self.is_escaped, self.is_string = character == "\\", character != '"'
            elif character == '"':
                self.is_string = True
            elif character in "{}":
                self.depth += 1 if character == "{" else -1
                if not self.depth:
                    return i + 1
        return None


class CallReader:
    """Reads one answer of a model that was offered tools of these names.

    Text that cannot be judged yet waits in `held`: `<tool_` may still become the marker `<tool_call>`.
    """

    def __init__(self, form: ToolFormat, names: Collection[str]) -> None:
        self.form = form
        self.names = names
        self.begin, self.end = form.begin.strip(), form.end.strip()
        self.held = ""
        self.passed = ""
        """Text read since the last call or content; it becomes content where no call follows after all."""
        self.num_calls = 0
        self.state = State.CONTENT
        self.braces = Braces(0)

    @property
    def is_inside(self) -> bool:
        """Whether the text so far ends inside a call's arguments, as where a stop string cut it."""
        return self.state is State.ARGUMENTS

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now; text that may still become a call is held back."""
        self.held += text
        parts: list[Part] = []
        while self.held and self.step(parts):
            pass
        return parts

    def flush(self) -> list[Part]:
        """The content that was held back, at the end of the answer.

        After a call, the beginning of another one is dropped where it was cut off before its name.
        """
        rest = self.passed + self.held
        self.passed = self.held = ""
        is_begun = self.state is State.BETWEEN or self.begin.startswith(rest.strip(BETWEEN))
        is_content = self.state in (State.CONTENT, State.BETWEEN, State.PLAIN) and not (self.num_calls and is_begun)
        return [Part(rest)] if rest and is_content else []

    def step(self, parts: list[Part]) -> bool:
        """Reads on in `held` and adds to `parts`; False where more text is needed."""
        match self.state:
            case State.CONTENT:
                return self.find_begin(parts)
            case State.BETWEEN:
                return self.find_call(parts)
            case State.ARGUMENTS:
                return self.read_arguments(parts)
            case State.REST:
                return self.skip_rest()
        parts.append(Part(self.take(len(self.held))))
        return False

    def take(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text

    def find_begin(self, parts: list[Part]) -> bool:
        """Passes on content up to the marker where calls begin, without the spaces before it."""
        if self.form.is_bare:
            return self.open_bare()
        before, marker, _ = self.held.partition(self.begin)
        if marker:
            self.give(parts, before.rstrip())
            self.passed += self.take(len(before) + len(marker))[len(before.rstrip()) :]
            self.state = State.BETWEEN
            return True
        certain = self.held[: len(self.held) - held_back(self.held, [self.begin])].rstrip()
        if certain:
            self.give(parts, self.take(len(certain)))
        return False

    def open_bare(self) -> bool:
        self.passed += self.take(len(self.held) - len(self.held.lstrip()))
        if self.begin.startswith(self.held) and self.held != self.begin:
            return False
        if self.begin and self.held.startswith(self.begin):
            self.passed += self.take(len(self.begin))
        self.state = State.BETWEEN
        return True

    def give(self, parts: list[Part], content: str) -> None:
        if content:
            parts.append(Part(self.passed + content))
            self.passed = ""

    def find_call(self, parts: list[Part]) -> bool:
        """Looks for the head of a call or the marker after calls; anything else shows that there is no call."""
        self.passed += self.take(len(self.held) - len(self.held.lstrip(BETWEEN)))
        if self.end and self.held.startswith(self.end):
            self.passed += self.take(len(self.end))
            self.state = State.CONTENT
            self.passed = "" if self.num_calls else self.passed
            return True
        if not self.held or (self.end and self.end.startswith(self.held)):
            return False
        if head := HEAD.match(self.held):
            if head[1] in self.names:
                self.take(head.end())
                return self.begin_call(parts, head[1], "")
        elif self.held.startswith("{"):
            found = whole_object(self.held)
            if found is None:
                return False
            call, length = found
            if call.get("name") in self.names and (arguments := self.arguments_of(call)) is not None:
                self.take(length)
                self.begin_call(parts, str(call["name"]), arguments)
                self.state = State.BETWEEN
                return True
        self.state = State.PLAIN if self.form.is_bare else State.CONTENT
        self.give(parts, self.take(1))
        return True

    def arguments_of(self, call: dict[str, object]) -> str | None:
        """Arguments, as JSON, of a call whose fields are in an unusual order; some models write JSON in a string."""
        arguments = call.get(self.form.arguments, call.get("arguments", {}))
        if isinstance(arguments, str):
            found = whole_object(arguments)
            arguments = found[0] if found and not arguments[found[1] :].strip() else None
        return json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else None

    def begin_call(self, parts: list[Part], name: str, arguments: str) -> bool:
        number = uuid.uuid4().hex
        identifier = number[:9] if self.form.has_short_ids else f"call_{number[:24]}"
        parts.append(Part(arguments, self.num_calls, name, identifier))
        self.num_calls += 1
        self.passed = ""
        self.state, self.braces = State.ARGUMENTS, Braces(0)
        return True

    def read_arguments(self, parts: list[Part]) -> bool:
        end = self.braces.end_in(self.held)
        parts.append(Part(self.take(len(self.held) if end is None else end), self.num_calls - 1))
        if end is not None:
            self.state, self.braces = State.REST, Braces(1)
        return end is not None

    def skip_rest(self) -> bool:
        end = self.braces.end_in(self.held)
        self.take(len(self.held) if end is None else end)
        self.state = State.REST if end is None else State.BETWEEN
        return end is not None


def whole_object(text: str) -> tuple[dict[str, object], int] | None:
    """The JSON object at the beginning of `text`, and its length; None while it is not whole."""
    try:
        value, length = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return (value, length) if isinstance(value, dict) else None
