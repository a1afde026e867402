"""Pieces of text -> a chat completion or its chunks: messages of content and calls of tools."""

from collections.abc import Sequence

from server.api.answers.logprobs import ChatLogprobs
from server.api.answers.models import (
    Answer,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceEnd,
    ChunkChoice,
    Delta,
)
from server.api.answers.tool_calls import CalledFunction, FunctionDelta, ToolCall, ToolCallDelta
from server.api.answers.tool_parser import Part
from server.api.answers.transcript import AnswerStart, ChoicesTranscript, trace_of
from server.generation import Piece, ShownToken


class MessageBuilder:
    """Puts the message of one choice together: its thoughts, its content, and its calls of tools."""

    def __init__(self) -> None:
        self.thoughts = self.content = ""
        self.calls: list[ToolCall] = []

    def add(self, part: Part) -> None:
        if part.is_thought:
            self.thoughts += part.text
        elif part.call is None:
            self.content += part.text
        elif part.name is not None and part.id is not None:
            self.calls.append(ToolCall(id=part.id, function=CalledFunction(name=part.name, arguments=part.text)))
        else:
            self.calls[part.call].function.arguments += part.text

    @property
    def message(self) -> AssistantMessage:
        """The message so far; its content is null, not "", where it has calls and no text."""
        content = None if self.calls and not self.content else self.content
        return AssistantMessage(content=content, reasoning_content=self.thoughts or None, tool_calls=self.calls or None)


def delta_of(part: Part) -> Delta:
    if part.is_thought:
        return Delta(reasoning_content=part.text)
    if part.call is None:
        return Delta(content=part.text)
    function = FunctionDelta(name=part.name, arguments=part.text)
    kind = None if part.id is None else "function"
    return Delta(tool_calls=[ToolCallDelta(index=part.call, id=part.id, type=kind, function=function)])


class ChatTranscript(ChoicesTranscript):
    """POST /v1/chat/completions; a reader for each choice finds thoughts and calls in its text."""

    id_prefix = "chatcmpl-"

    def __init__(self, start: AnswerStart) -> None:
        super().__init__(start)
        self.readers = [start.new_reader() for _ in range(start.num_choices)]
        self.messages = [MessageBuilder() for _ in range(start.num_choices)]
        self.new_parts: list[Part] = []

    def take(self, piece: Piece) -> None:
        super().take(piece)
        self.new_parts = self.readers[piece.index].read(piece)
        for part in self.new_parts:
            self.messages[piece.index].add(part)

    @property
    def reasoning_tokens(self) -> int:
        return sum(self.readers[index].num_thoughts(outcome) for index, outcome in self.outcomes.items())

    def finish_reason(self, index: int) -> ChoiceEnd | None:
        """A call that a stop string cut short is not to be made: the choice ends with "stop" then."""
        reason = super().finish_reason(index)
        has_calls = self.messages[index].calls and not self.readers[index].is_inside_call
        return "tool_calls" if reason == "stop" and has_calls else reason

    def chunks(self, piece: Piece) -> list[Answer]:
        index = piece.index
        deltas = [delta_of(part) for part in self.new_parts]
        if (piece.tokens or piece.steps) and not deltas:
            deltas = [Delta(content=None if self.readers[index].calls else "")]
        choices = [ChunkChoice(index=index, delta=delta) for delta in deltas]
        if piece.tokens:
            choices[0].logprobs = self.logprobs(piece.tokens)
        if piece.steps:
            choices[0].trace = trace_of(piece.steps)
        if index not in self.begun:
            self.begun.add(index)
            choices.insert(0, ChunkChoice(index=index, delta=Delta(role="assistant", content="")))
        if piece.outcome:
            choices.append(ChunkChoice(index=index, delta=Delta(), finish_reason=self.finish_reason(index)))
        return [self.chunk([choice]) for choice in choices]

    def chunk(self, choices: list[ChunkChoice]) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self.head, choices=choices)

    def empty_chunk(self) -> Answer:
        return self.chunk([])

    def whole(self) -> Answer:
        choices = [
            ChatChoice(
                index=i,
                message=message.message,
                logprobs=self.logprobs(self.tokens[i]),
                finish_reason=self.finish_reason(i) or "stop",
                trace=self.trace(i),
            )
            for i, message in enumerate(self.messages)
        ]
        return self.seal(ChatCompletion(**self.head, choices=choices, route=self.route))

    def logprobs(self, tokens: Sequence[ShownToken]) -> ChatLogprobs | None:
        vocabulary = self.start.vocabulary
        return ChatLogprobs.of(tokens, vocabulary) if vocabulary else None
