"""The state of one request inside the engine."""

import secrets
import time
from dataclasses import dataclass, field

from torch import Tensor

from server.engine.processors import LogitsProcessor
from server.engine.sampling import Draw
from server.engine.types import (
    LONGEST_GROWTH,
    MAX_DRAFT,
    UNROUTED,
    FinishReason,
    Method,
    Route,
    SamplingParams,
    SequenceStats,
    StopConditions,
    TokenLogprobs,
)


@dataclass(frozen=True)
class GenerationRequest:
    """What the engine is asked for; None leaves the choice to the engine's configuration or router.

    `num_logprobs` is how many of the most likely tokens to report beside each token; None reports nothing.
    `scores_prompt` reports the prompt's tokens as well.
    """

    prompt_ids: list[int]
    sampling: SamplingParams
    stop: StopConditions
    method: Method | None = None
    route: Route | None = None
    max_draft: int | None = None
    num_logprobs: int | None = None
    scores_prompt: bool = False


@dataclass(eq=False)
class Sequence:
    """Ids so far, and the cursor below which the cache was written by full passes.

    While decoding, the cursor stands on the last id, which the next pass will process.
    """

    id: int
    request: GenerationRequest
    method: Method
    max_draft: int
    ids: list[int]
    max_ids: int
    seed: int
    processor: LogitsProcessor | None
    cursor: int = 0
    slot: int = -1
    hidden_chunks: list[Tensor] = field(default_factory=list)
    prompt_vector: Tensor | None = None
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    route: Route = UNROUTED
    stats: SequenceStats = field(default_factory=SequenceStats)
    finish_reason: FinishReason | None = None
    added_at: float = field(default_factory=time.perf_counter)
    admitted_at: float | None = None

    @classmethod
    def of(cls, number: int, request: GenerationRequest, method: Method, max_draft: int, max_length: int) -> "Sequence":
        seed = secrets.randbits(62) if request.sampling.seed is None else request.sampling.seed
        max_ids = min(len(request.prompt_ids) + request.stop.max_tokens, max_length)
        processor = LogitsProcessor.of(request.sampling.adjustments, request.stop, len(request.prompt_ids))
        return cls(number, request, method, max_draft, list(request.prompt_ids), max_ids, seed, processor)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def output_ids(self) -> list[int]:
        return self.ids[self.prompt_length :]

    @property
    def is_prefilled(self) -> bool:
        return self.cursor >= self.prompt_length

    @property
    def room(self) -> int:
        """Tokens that may still be emitted."""
        return self.max_ids - len(self.ids)

    @property
    def draft_limit(self) -> int:
        """Drafting more than this could not be emitted: a verification adds one token of its own."""
        return max(min(self.max_draft, self.room - 1), 0)

    def grown_draft_limit(self, growth: int) -> int:
        """The limit of a draft that costs nothing: `growth` times the engine's, but never over the request's own."""
        return max(min(growth * self.max_draft, self.longest_draft, self.room - 1), 0)

    @property
    def longest_draft(self) -> int:
        """No draft is longer, grown or not."""
        is_own = self.request.max_draft is not None
        return self.max_draft if is_own else min(LONGEST_GROWTH * self.max_draft, MAX_DRAFT)

    def draw(self, ahead: int) -> Draw:
        """What decides the token `ahead` places after the next one."""
        return Draw(self.request.sampling, self.seed, len(self.ids) + ahead)

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether its tokens are the most likely ones of the model's own logits."""
        return self.request.sampling.is_greedy and self.processor is None

    @property
    def needs_logits(self) -> bool:
        return not self.is_plainly_greedy or self.request.num_logprobs is not None


@dataclass(frozen=True)
class Emission:
    """New token ids of one sequence; `finish_reason` is set with its last ones.

    `logprobs` has one entry for each id where the request asked for them.
    """

    sequence: Sequence
    token_ids: list[int]
    finish_reason: FinishReason | None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
