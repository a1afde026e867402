"""One sequence of one request on its way from token ids to text: what the worker advances and readers receive.

A request that asks for several choices has one generation for each.
"""

from dataclasses import dataclass

from server.engine import (
    Emission,
    FinishReason,
    GenerationRequest,
    Method,
    Route,
    Sequence,
    SequenceStats,
    StepStats,
    TextStream,
)


@dataclass(frozen=True)
class Prompt:
    """What is to be generated for one choice."""

    request: GenerationRequest
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a generation ended; times in seconds, each part following the one before.

    `completion_tokens` ends with the end-of-sequence token or the token that completed a stop string.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    route: Route
    method: Method
    max_draft: int
    stats: SequenceStats
    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    route_seconds: float = 0.0
    """Part of the prefill."""
    draft_seconds: float = 0.0
    """Part of decoding, as `verify_seconds`: of the steps that the sequence took part in."""
    verify_seconds: float = 0.0


@dataclass(frozen=True)
class Piece:
    """New text of choice `index`; the last piece carries the outcome."""

    index: int
    text: str
    outcome: Outcome | None = None


class Generation:
    """State beside the engine's sequence: text, and when its tokens came."""

    def __init__(self, index: int, sequence: Sequence, text: TextStream) -> None:
        self.index = index
        self.sequence = sequence
        self.text = text
        self.first_token_at: float | None = None
        self.last_token_at = sequence.added_at
        self.seen = SequenceStats()
        self.route_seconds = self.draft_seconds = self.verify_seconds = 0.0

    def spend(self, stats: StepStats) -> None:
        """Books a step that the sequence took part in; to be told before `advance`."""
        if self.first_token_at is None:
            self.route_seconds += stats.route_seconds
        else:
            self.draft_seconds += stats.draft_seconds
            self.verify_seconds += stats.verify_seconds

    def advance(self, emission: Emission, now: float) -> Piece:
        """Decodes what the engine emitted; a stop string ends the generation before the engine does."""
        stop_ids = self.sequence.request.stop.token_ids
        text = self.text.push(token for token in emission.token_ids if token not in stop_ids)
        self.first_token_at = self.first_token_at or now
        self.last_token_at = now
        reason = FinishReason.STOP if self.text.is_stopped else emission.finish_reason
        if reason is None:
            self.seen = self.sequence.stats.copy()
            return Piece(self.index, text)
        surplus = len(self.sequence.output_ids) - self.text.num_tokens if self.text.is_stopped else 0
        return Piece(self.index, text + self.text.flush(), self.outcome(reason, len(emission.token_ids), surplus))

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
            max_draft=sequence.max_draft,
            stats=cut(self.seen, num_emitted - surplus) if surplus else stats.copy(),
            queue_seconds=admitted_at - sequence.added_at,
            prefill_seconds=first_token_at - admitted_at,
            decode_seconds=self.last_token_at - first_token_at,
            route_seconds=self.route_seconds,
            draft_seconds=self.draft_seconds,
            verify_seconds=self.verify_seconds,
        )


def cut(before: SequenceStats, num_kept: int) -> SequenceStats:
    """Statistics whose last verification drafted only the `num_kept` tokens before a stop string ended it.

    All of them were accepted: the corrected or bonus token is the last one, and that was cut away.
    """
    stats = before.copy()
    stats.record(num_kept, num_kept)
    return stats
