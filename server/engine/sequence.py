"""The state of one request inside the engine: its ids so far, where it stands, how it is drafted."""

import secrets
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from server.engine.requests import GenerationRequest
from server.engine.sampling.logits_processor import LogitsProcessor
from server.engine.sampling.sampler import Span
from server.engine.types import (
    LONGEST_GROWTH,
    MAX_DRAFT,
    UNROUTED,
    DraftModel,
    FinishReason,
    Place,
    Route,
    SequenceStats,
    TokenLogprobs,
    TracedStep,
)

Kind = tuple[str, float]
"""A domain, and a temperature in tenths: what drafts are worth differs by both."""


@dataclass(eq=False)
class Sequence:
    """Ids so far, and the cursor below which the cache was written by full passes.

    While decoding, the cursor stands on the last id, which the next pass will process.
    """

    id: int
    request: GenerationRequest
    method: str
    max_draft: int
    ids: list[int]
    max_ids: int
    seed: int
    processor: LogitsProcessor | None
    cursor: int = 0
    slot: int = -1
    num_cached: int = 0
    """Tokens of the prompt that did not have to be read."""
    prompt_vector: Tensor | None = None
    last_state: Tensor = field(default_factory=lambda: torch.empty(0))
    """The full model's state [hidden_size] that the last id was drawn from, until its next pass."""
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    route: Route = UNROUTED
    place: Place | None = None
    """Where its prompt lies, of a request that is traced, in an engine with a routing artifact."""
    stats: SequenceStats = field(default_factory=SequenceStats)
    finish_reason: FinishReason | None = None
    added_at: float = field(default_factory=time.perf_counter)
    admitted_at: float | None = None

    @classmethod
    def of(cls, number: int, request: GenerationRequest, method: str, max_draft: int, max_length: int) -> "Sequence":
        seed = secrets.randbits(62) if request.sampling.seed is None else request.sampling.seed
        max_ids = min(len(request.prompt_ids) + request.stop.max_tokens, max_length)
        asked, prompt_length = request.sampling.adjustments, len(request.prompt_ids)
        processor = LogitsProcessor.of(asked, request.stop, prompt_length, request.grammar)
        return cls(number, request, method, max_draft, list(request.prompt_ids), max_ids, seed, processor)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def reading_end(self) -> int:
        """Tokens to read before it decodes: its prompt, or all that was written when it lost its slot, but the last."""
        return max(self.prompt_length, len(self.ids) - 1)

    @property
    def is_prefilled(self) -> bool:
        return self.cursor >= self.reading_end

    @property
    def room(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_ids - len(self.ids)

    @property
    def draft_limit(self) -> int:
        """Drafting more than this could not be emitted: a verification adds one token of its own."""
        return max(min(self.max_draft, self.room - 1), 0)

    @property
    def draft_room(self) -> int:
        """Places behind the cursor that drafts of any kind may write to."""
        return max(min(MAX_DRAFT, self.room - 1), 0)

    def chain_limit(self, draft: DraftModel) -> int:
        """The same for drafts of this model, which may have a length of its own; the request's goes first."""
        return max(min(self.longest_chain(draft), self.room - 1), 0)

    def longest_chain(self, draft: DraftModel) -> int:
        return self.max_draft if self.has_own_length or draft.max_draft is None else draft.max_draft

    @property
    def has_own_length(self) -> bool:
        """Whether `max_draft` is what the request asked for, not the engine's."""
        return self.request.max_draft is not None

    def grown_draft_limit(self, growth: int) -> int:
        """The limit of a draft that costs nothing: `growth` times the engine's, but never over the request's own."""
        longest = self.max_draft if self.has_own_length else min(growth * self.max_draft, MAX_DRAFT)
        return max(min(longest, self.room - 1), 0)

    @property
    def longest_draft(self) -> int:
        """No draft is longer, grown or not."""
        if self.has_own_length:
            return self.max_draft
        return max(min(LONGEST_GROWTH * self.max_draft, MAX_DRAFT), self.longest_chain(self.route.draft))

    def span(self, drafted: list[int], num_rows: int = 1) -> Span:
        """Where the last `num_rows` rows of logits stand that follow its ids and `drafted`."""
        asked = self.request
        return Span(self.ids, drafted, num_rows, asked.sampling, self.seed, self.processor, asked.num_logprobs)

    @property
    def kind(self) -> Kind:
        return self.route.domain, round(self.request.sampling.temperature, 1)

    def forced(self, limit: int) -> list[int]:
        """Tokens, at most `limit`, that must come next."""
        return self.processor.forced(self.ids, limit) if self.processor else []

    @property
    def exceeds_grammar(self) -> bool:
        """Whether its grammar exceeded its limits before the last id."""
        grammar = self.processor.grammar if self.processor else None
        return grammar is not None and grammar.failed_at == len(self.ids) - 1

    @property
    def failure(self) -> Exception | None:
        """The error in its own part of a step, of which it ends."""
        return self.processor.failure if self.processor else None


@dataclass(frozen=True)
class Emission:
    """New token ids of one sequence; `finish_reason` is set with its last ones.

    `logprobs` has one entry for each id where the request asked for them, and `step` says where the ids came from.
    """

    sequence: Sequence
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    step: TracedStep | None = None
