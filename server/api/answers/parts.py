"""The parts that an answer's text is made of, as they come: thoughts, content, and calls of tools."""

from bisect import bisect_left

from server.api.answers.thinking import ThoughtReader
from server.api.answers.tool_parser import CallReader, Part
from server.api.schema.tools import Toolset
from server.engine import TextCodec, Thinking
from server.generation import Outcome, Piece


class AnswerReader:
    """Reads one choice: its thoughts, of a model that has them, and then content and calls, where tools are offered."""

    def __init__(self, thinking: Thinking = Thinking.NONE, calls: CallReader | None = None) -> None:
        self.thoughts = ThoughtReader(thinking)
        self.calls = calls

    @property
    def is_inside_call(self) -> bool:
        """Whether the text so far ends inside a call's arguments."""
        return self.calls is not None and self.calls.is_inside

    def read(self, piece: Piece) -> list[Part]:
        """The parts that are certain now; with the last piece all that are left."""
        parts = self.parts(*self.thoughts.push(piece.text))
        if piece.outcome:
            parts += self.parts(*self.thoughts.flush())
            parts += self.calls.flush() if self.calls else []
        return parts

    def parts(self, thought: str, text: str) -> list[Part]:
        parts = [Part(thought, is_thought=True)] if thought else []
        if self.calls:
            return parts + self.calls.push(text)
        return [*parts, Part(text)] if text else parts

    def num_thoughts(self, outcome: Outcome) -> int:
        """Tokens of the choice that begin before the end of its thoughts."""
        return bisect_left(outcome.starts, self.thoughts.num_characters)


def begins_item(part: Part, last: Part | None) -> bool:
    """Whether the part is the first of a thought, a text or a call; `last` is the part before it."""
    return last is None or part.name is not None or (part.is_thought, part.call) != (last.is_thought, last.call)


def new_reader(thinking: Thinking, tools: Toolset | None, codec: TextCodec) -> AnswerReader:
    """A reader of one answer that begins so, to a request that offers these tools."""
    return AnswerReader(thinking, CallReader(codec.tool_format, tools.names) if tools else None)
