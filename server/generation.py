"""One sequence of one request on its way from token ids to text; the worker advances it, a reply gets its pieces.

A request with `n: 3` has three generations, one for each choice.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from server.engine import (
    Emission,
    FinishReason,
    GenerationRequest,
    Place,
    Route,
    Sequence,
    SequenceStats,
    StepStats,
    StepTexts,
    TextStream,
    TextTrace,
    TokenLogprobs,
)

Operation = Literal["chat", "text_completion"]
"""The kind of request, in the words of OpenTelemetry's GenAI conventions."""


@dataclass(frozen=True)
class Prompt:
    """The engine's request for one choice, and its handling as text: an echo puts the prompt before the answer."""

    request: GenerationRequest
    stop: tuple[str, ...] = ()
    is_echoed: bool = False
    operation: Operation = "text_completion"


@dataclass(frozen=True)
class Outcome:
    """The end of a generation, its counts and its times: seconds of queue, prefill and decoding, one after the other.

    `completion_tokens` includes the end-of-sequence token, or the token that completed a stop string.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    route: Route
    method: str
    longest_draft: int
    stats: SequenceStats
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    route_seconds: float = 0.0
    """Part of `prefill_seconds`."""
    draft_seconds: float = 0.0
    """Part of `decode_seconds`, as `verify_seconds` is; a step that several sequences share counts whole for each."""
    verify_seconds: float = 0.0
    operation: Operation = "text_completion"
    cached_tokens: int = 0
    """Those of `prompt_tokens` that did not have to be read."""
    stop: str | None = None
    """The stop string that ended it."""
    starts: tuple[int, ...] = ()
    """The character at which the text of each token of the answer begins."""


class ShownToken(NamedTuple):
    """A token of the answer's text: the character at which it starts, and its log-probability."""

    start: int
    scores: TokenLogprobs


class RoutedPrompt(NamedTuple):
    """What the router made of a prompt, and where that lies among the anchors."""

    route: Route
    place: Place | None


@dataclass(frozen=True)
class Piece:
    """New text of choice `index`; the last piece carries the outcome.

    Where log-probabilities are asked for, `tokens` are those whose text has begun and that no earlier piece had.
    Where a trace is asked for, `steps` are those whose texts are certain and that no earlier piece had, and the first
    piece says where the prompt went.
    """

    index: int
    text: str
    outcome: Outcome | None = None
    tokens: tuple[ShownToken, ...] = ()
    num_tokens: int = 0
    """Tokens of the choice so far, those of this piece included."""
    steps: tuple[StepTexts, ...] = ()
    routed: RoutedPrompt | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.tokens or self.outcome or self.steps or self.routed)


class Generation:
    """The state that the engine's sequence lacks: its text so far, and when its tokens came."""

    def __init__(
        self,
        index: int,
        sequence: Sequence,
        text: TextStream,
        echo: TextStream | None = None,
        operation: Operation = "text_completion",
    ) -> None:
        self.index = index
        self.operation = operation
        self.sequence = sequence
        self.text = text
        self.echo = echo
        self.trace = TextTrace(text) if sequence.request.is_traced else None
        self.scores: list[TokenLogprobs] = []
        self.num_shown = 0
        self.first_token_at: float | None = None
        self.last_token_at = sequence.added_at
        self.seen = SequenceStats()
        self.route_seconds = self.draft_seconds = self.verify_seconds = 0.0

    def spend(self, stats: StepStats) -> None:
        """Adds the times of a step that the sequence took part in; to be called before `advance`."""
        if self.is_new:
            self.route_seconds += stats.route_seconds
        else:
            self.draft_seconds += stats.draft_seconds
            self.verify_seconds += stats.verify_seconds

    def advance(self, emission: Emission, now: float) -> Piece:
        """A piece from the tokens of one step; a stop string in them ends the generation before the engine does."""
        stop_ids = self.sequence.request.stop.token_ids
        echoed, echoed_tokens = self.echoed() if self.is_new else ("", ())
        text = self.text.push(token for token in emission.token_ids if token not in stop_ids)
        self.scores += [scores for scores in emission.logprobs if scores.token_id not in stop_ids]
        routed = RoutedPrompt(self.sequence.route, self.sequence.place) if self.trace and self.is_new else None
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now
        reason = FinishReason.STOP if self.text.is_stopped else emission.finish_reason
        if reason is None:
            self.seen = self.sequence.stats.copy()
            shown, steps = echoed_tokens + self.shown(), self.traced(emission, text)
            return Piece(self.index, echoed + text, None, shown, len(self.sequence.output_ids), steps, routed)
        surplus = len(self.sequence.output_ids) - self.text.num_tokens if self.text.is_stopped else 0
        outcome = self.outcome(reason, len(emission.token_ids), surplus)
        text += self.text.flush()
        shown, steps = echoed_tokens + self.shown(is_end=True), self.traced(emission, text, is_end=True)
        return Piece(self.index, echoed + text, outcome, shown, outcome.completion_tokens, steps, routed)

    @property
    def is_new(self) -> bool:
        """Whether nothing was emitted yet."""
        return self.first_token_at is None

    def traced(self, emission: Emission, text: str, is_end: bool = False) -> tuple[StepTexts, ...]:
        """The steps whose texts are certain now, where the request asks for them; `text` is what this one released."""
        if self.trace is None:
            return ()
        if emission.step:
            self.trace.add(emission.step, emission.token_ids)
        return self.trace.take(text, is_end)

    def echoed(self) -> tuple[str, tuple[ShownToken, ...]]:
        """Text and tokens of the prompt as the model read it; empty unless the request asked for an echo."""
        if self.echo is None:
            return "", ()
        text = self.echo.push(self.sequence.request.prompt_ids) + self.echo.flush()
        # The prompt has no scores where none were asked for.
        return text, tuple(map(ShownToken, self.echo.starts, self.sequence.prompt_logprobs))

    def shown(self, is_end: bool = False) -> tuple[ShownToken, ...]:
        """Tokens whose text is new; those that begin at or after a stop string are cut away with it."""
        if not self.scores:
            return ()
        first = self.num_shown
        self.num_shown = len(self.text.starts) if is_end and not self.text.is_stopped else self.text.num_shown
        offset = self.echo.num_released if self.echo else 0
        new = slice(first, self.num_shown)
        starts = [offset + start for start in self.text.starts[new]]
        return tuple(map(ShownToken, starts, self.scores[new]))

    def outcome(self, reason: FinishReason, num_emitted: int = 0, surplus: int = 0) -> Outcome:
        """The outcome without the `surplus` tokens that the engine emitted after a stop string."""
        sequence, stats = self.sequence, self.sequence.stats
        admitted_at = sequence.admitted_at or self.last_token_at
        first_token_at = self.first_token_at or self.last_token_at
        return Outcome(
            finish_reason=reason,
            prompt_tokens=sequence.prompt_length,
            completion_tokens=len(sequence.output_ids) - surplus,
            route=sequence.route,
            method=sequence.method,
            longest_draft=sequence.longest_draft,
            stats=cut(self.seen, num_emitted - surplus) if surplus else stats.copy(),
            queue_seconds=admitted_at - sequence.added_at,
            prefill_seconds=first_token_at - admitted_at,
            decode_seconds=self.last_token_at - first_token_at,
            route_seconds=self.route_seconds,
            draft_seconds=self.draft_seconds,
            verify_seconds=self.verify_seconds,
            operation=self.operation,
            cached_tokens=sequence.num_cached,
            stop=self.text.stopped_by,
            starts=tuple(self.text.starts),
        )


def cut(before: SequenceStats, num_kept: int) -> SequenceStats:
    """Statistics whose last verification drafted only the `num_kept` tokens before a stop string ended it.

    All of them were accepted: the corrected or bonus token is the last one, and that was cut away.
    """
    stats = before.copy()
    stats.record(num_kept, num_kept)
    return stats
