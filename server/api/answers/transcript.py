"""Pieces of text -> OpenAI's chunks as server-sent events, or folded into one answer.

Both ways read the same iterator of pieces; `http/reply.py` sends the result. This module has the base of all
transcripts and the one of text completions; chats are in `chat.py`, responses in `responses/stream.py`.
"""

import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel

from server.api.answers.events import event, padded
from server.api.answers.logprobs import TextLogprobs
from server.api.answers.models import (
    CHOICE_ENDS,
    Answer,
    ChoiceEnd,
    RequestMetrics,
    TextChoice,
    TextCompletion,
    Usage,
)
from server.api.answers.parts import AnswerReader
from server.api.answers.trace import RouteCard, TraceStep
from server.api.errors import ApiError, BadRequestError
from server.api.schema.generation import StreamOptions
from server.engine import FinishReason, StepTexts, Vocabulary
from server.generation import Outcome, Piece, ShownToken


@dataclass(frozen=True)
class AnswerStart:
    """The part of an answer that is known before its first token.

    Two prompts with `n: 3` make six choices. The vocabulary names tokens beside their log-probabilities; it is
    None where none are asked for.
    """

    created: int
    model: str
    system_fingerprint: str
    prompt_tokens: int
    num_prompts: int
    num_choices: int
    vocabulary: Vocabulary | None
    new_reader: Callable[[], AnswerReader] = AnswerReader
    """Makes a reader of one choice, of a chat."""
    is_traced: bool = False
    """Whether the answer says where its tokens came from."""


class Transcript(ABC):
    """One answer in the making: its text so far, and how each of its choices ended."""

    id_prefix: ClassVar[str]

    def __init__(self, start: AnswerStart) -> None:
        self.start = start
        self.id = f"{self.id_prefix}{uuid.uuid4().hex}"
        self.texts = [""] * start.num_choices
        self.tokens: list[list[ShownToken]] = [[] for _ in range(start.num_choices)]
        self.num_tokens = [0] * start.num_choices
        self.begun: set[int] = set()
        self.outcomes: dict[int, Outcome] = {}

    @abstractmethod
    def whole(self) -> BaseModel:
        """The answer, once every choice has ended."""

    @abstractmethod
    def frames(self, pieces: AsyncIterator[Piece], options: StreamOptions) -> AsyncIterator[str]:
        """Server-sent events; none before the first piece, so that until then an error has its own status."""

    def failure(self, error: ApiError) -> str:
        """The last event of a stream that cannot go on."""
        return event(error.body.model_dump_json())

    def take(self, piece: Piece) -> None:
        """Adds a piece to its choice; raises `BadRequestError` where the choice's grammar grew too complex."""
        self.texts[piece.index] += piece.text
        self.tokens[piece.index] += piece.tokens
        self.num_tokens[piece.index] = piece.num_tokens
        if piece.outcome:
            self.outcomes[piece.index] = piece.outcome
            if piece.outcome.finish_reason is FinishReason.ERROR:
                raise BadRequestError("The grammar of the answer grew too complex.", code="grammar_too_complex")

    async def fold(self, pieces: AsyncIterator[Piece]) -> None:
        """Takes all pieces."""
        async for piece in pieces:
            self.take(piece)

    def whole_json(self) -> bytes:
        """The answer as it is sent; with many log-probabilities it takes a second, so a thread makes it."""
        return self.whole().model_dump_json().encode()

    @property
    def metrics(self) -> RequestMetrics | None:
        return RequestMetrics.of(self.outcomes[0]) if len(self.texts) == 1 else None


TranscriptFactory = Callable[[AnswerStart], Transcript]
"""Begins the transcript of one answer; each endpoint has its own."""


class ChoicesTranscript(Transcript):
    """A chat or a text completion: several choices, streamed as chunks that look like small answers."""

    def __init__(self, start: AnswerStart) -> None:
        super().__init__(start)
        self.steps: list[list[StepTexts]] = [[] for _ in range(start.num_choices)]
        self.route: RouteCard | None = None
        """Where the router put the prompt, of a traced answer to one."""

    def take(self, piece: Piece) -> None:
        super().take(piece)
        self.steps[piece.index] += piece.steps
        if piece.routed and self.start.num_prompts == 1 and self.route is None:
            self.route = RouteCard.of(piece.routed)

    def trace(self, index: int) -> list[TraceStep] | None:
        """All steps of a choice; None where no trace was asked for."""
        return trace_of(self.steps[index]) if self.start.is_traced else None

    @property
    def head(self) -> dict[str, Any]:
        """The fields that the answer and each of its chunks begin with."""
        start = self.start
        return {
            "id": self.id,
            "created": start.created,
            "model": start.model,
            "system_fingerprint": start.system_fingerprint,
        }

    @abstractmethod
    def chunks(self, piece: Piece) -> list[Answer]:
        """The chunks that tell of one piece; empty where a call of a tool may have begun and is not certain yet."""

    @abstractmethod
    def empty_chunk(self) -> Answer:
        """A chunk without choices, which carries the usage at the end of a stream."""

    def finish_reason(self, index: int) -> ChoiceEnd | None:
        outcome = self.outcomes.get(index)
        return CHOICE_ENDS[outcome.finish_reason] if outcome else None

    @property
    def reasoning_tokens(self) -> int:
        return 0

    def seal(self, answer: Answer) -> Answer:
        """The answer with its usage and metrics, which are known at the end only."""
        outcomes = [self.outcomes[i] for i in sorted(self.outcomes)]
        usage = Usage.of(self.start.prompt_tokens, self.start.num_prompts, outcomes, self.reasoning_tokens)
        return answer.model_copy(update={"usage": usage, "metrics": self.metrics})

    def frame(self, answer: Answer, options: StreamOptions, is_last: bool = False) -> str:
        """One event; the last one carries the metrics, and the usage where it was asked for."""
        hidden = {"metrics", "usage"}
        if is_last:
            answer, hidden = self.seal(answer), set() if options.include_usage else {"usage"}
        elif options.include_usage:
            hidden = {"metrics"}
            if options.continuous_usage_stats:
                usage = Usage.so_far(self.start.prompt_tokens, sum(self.num_tokens))
                answer = answer.model_copy(update={"usage": usage})
        data = answer.model_dump_json(exclude=hidden)
        return event(padded(data) if options.include_obfuscation else data)

    async def frames(self, pieces: AsyncIterator[Piece], options: StreamOptions) -> AsyncIterator[str]:
        """Usage, where it was asked for, comes in a chunk of its own after all choices."""
        async for piece in pieces:
            was_routed = self.route is not None
            self.take(piece)
            chunks = self.chunks(piece)
            if self.route and not was_routed:
                chunks[0].route = self.route
            is_end = len(self.outcomes) == len(self.texts) and not options.include_usage
            for i, chunk in enumerate(chunks, 1):
                yield self.frame(chunk, options, is_last=is_end and i == len(chunks))
        if options.include_usage:
            yield self.frame(self.empty_chunk(), options, is_last=True)
        yield event("[DONE]")


def trace_of(steps: Iterable[StepTexts]) -> list[TraceStep]:
    return [TraceStep.of(step) for step in steps]


class TextTranscript(ChoicesTranscript):
    """POST /v1/completions"""

    id_prefix = "cmpl-"

    def chunks(self, piece: Piece) -> list[Answer]:
        logprobs = self.logprobs(piece.tokens) if piece.tokens else None
        choice = self.choice(piece.index, piece.text, logprobs)
        choice.trace = trace_of(piece.steps) or None
        return [self.answer([choice])]

    def empty_chunk(self) -> Answer:
        return self.answer([])

    def whole(self) -> Answer:
        choices = [self.choice(i, text, self.logprobs(self.tokens[i])) for i, text in enumerate(self.texts)]
        for choice in choices:
            choice.trace = self.trace(choice.index)
        answer = self.answer(choices)
        answer.route = self.route
        return self.seal(answer)

    def answer(self, choices: list[TextChoice]) -> TextCompletion:
        return TextCompletion(**self.head, choices=choices)

    def choice(self, index: int, text: str, logprobs: TextLogprobs | None) -> TextChoice:
        return TextChoice(index=index, text=text, logprobs=logprobs, finish_reason=self.finish_reason(index))

    def logprobs(self, tokens: Sequence[ShownToken]) -> TextLogprobs | None:
        vocabulary = self.start.vocabulary
        return TextLogprobs.of(tokens, vocabulary) if vocabulary else None
