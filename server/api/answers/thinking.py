"""Finds the thoughts before an answer, `<think>They ask for ...</think>Paris`, in a text that comes piece by piece."""

from enum import Enum

from server.engine import THINK_BEGIN, THINK_END, Thinking, held_back


class State(Enum):
    BEFORE = "before the marker with which thinking may begin"
    INSIDE = "inside the thoughts"
    AFTER = "after them, before the answer's first letter"
    ANSWER = "in the answer"


FIRST = {Thinking.NONE: State.ANSWER, Thinking.POSSIBLE: State.BEFORE, Thinking.OPEN: State.INSIDE}


class ThoughtReader:
    """Parts thoughts from the rest; blanks around the markers belong to neither.

    `num_characters` is the length of all text up to the end of the thoughts, markers included.
    """

    def __init__(self, thinking: Thinking) -> None:
        self.state = FIRST[thinking]
        self.held = ""
        self.has_thoughts = False
        self.num_characters = 0

    def push(self, text: str) -> tuple[str, str]:
        """New thoughts and new text of the answer; what may still become a marker is held back."""
        self.held += text
        if self.state is State.BEFORE:
            self.find_begin()
        thought = self.read_thought() if self.state is State.INSIDE else ""
        if self.state is State.AFTER and (rest := self.held.lstrip()):
            self.num_characters += len(self.held) - len(rest)
            self.held, self.state = rest, State.ANSWER
        return thought, self.take(len(self.held)) if self.state is State.ANSWER else ""

    def flush(self) -> tuple[str, str]:
        """What was held back, at the end of the answer."""
        is_thought = self.state is State.INSIDE
        rest = self.take(len(self.held))
        self.num_characters += len(rest) if self.state in (State.INSIDE, State.AFTER) else 0
        return (rest.rstrip(), "") if is_thought else ("", rest if self.state is not State.AFTER else "")

    def take(self, length: int) -> str:
        text, self.held = self.held[:length], self.held[length:]
        return text

    def find_begin(self) -> None:
        begun = self.held.lstrip()
        if begun.startswith(THINK_BEGIN):
            self.num_characters = len(self.held) - len(begun) + len(THINK_BEGIN)
            self.held, self.state = begun.removeprefix(THINK_BEGIN), State.INSIDE
        elif not THINK_BEGIN.startswith(begun):
            self.state = State.ANSWER

    def read_thought(self) -> str:
        if not self.has_thoughts:
            self.num_characters += len(self.held) - len(self.held.lstrip())
            self.held = self.held.lstrip()
        before, marker, _ = self.held.partition(THINK_END)
        if not marker:
            before = before[: len(before) - held_back(before, [THINK_END])]
        self.num_characters += len(before.rstrip())
        thought = self.take(len(before.rstrip()))
        self.has_thoughts = self.has_thoughts or bool(thought)
        if marker:
            self.num_characters += len(self.held[: self.held.index(marker)]) + len(marker)
            self.held, self.state = self.held[self.held.index(marker) + len(marker) :], State.AFTER
        return thought
