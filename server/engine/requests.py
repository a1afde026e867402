"""What an engine is configured with and what it refuses to run."""

from dataclasses import dataclass

from server.engine.sequence import GenerationRequest
from server.engine.types import MAX_DRAFT, Method


@dataclass(frozen=True)
class EngineConfig:
    """Sizes and defaults; `max_draft` and `confidence` None take the artifact's calibrated values.

    `baseline_share` of the decode steps run plainly, so that the live speed-up compares
    measurements. `is_adaptive` lets measured gains and costs choose among a method's drafts.
    """

    max_batch: int = 8
    max_length: int | None = None
    prefill_chunk: int = 512
    method: Method = Method.CASCADE
    max_draft: int | None = None
    confidence: float | None = None
    baseline_share: float = 1 / 64
    is_adaptive: bool = True

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.prefill_chunk < 1 or not 0 <= self.baseline_share <= 1:
            raise ValueError("max_batch and prefill_chunk are at least 1, baseline_share is between 0 and 1")
        if self.max_draft is not None and not 0 <= self.max_draft <= MAX_DRAFT:
            raise ValueError(f"max_draft is between 0 and {MAX_DRAFT}")


class PromptTooLongError(ValueError):
    """The prompt leaves no room for a single token; carries both lengths."""

    def __init__(self, prompt_length: int, max_length: int) -> None:
        super().__init__(f"the prompt has {prompt_length} tokens, the context holds {max_length} with the answer")
        self.prompt_length = prompt_length
        self.max_length = max_length


def check_request(request: GenerationRequest, vocabulary_size: int, max_length: int) -> None:
    """Refuses what the engine cannot run: `PromptTooLongError`, or `ValueError` with one sentence."""
    if not request.prompt_ids:
        raise ValueError("the prompt has no tokens")
    if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocabulary_size:
        raise ValueError(f"prompt token ids are between 0 and {vocabulary_size - 1}")
    if request.stop.max_tokens < 0:
        raise ValueError("max_tokens is at least 0")
    biased = (token for token, _ in request.sampling.adjustments.logit_bias)
    if not all(0 <= token < vocabulary_size for token in biased):
        raise ValueError(f"biased token ids are between 0 and {vocabulary_size - 1}")
    if request.max_draft is not None and not 0 <= request.max_draft <= MAX_DRAFT:
        raise ValueError(f"max_draft is between 0 and {MAX_DRAFT}")
    if request.grammar and not any(end < vocabulary_size for end in request.stop.token_ids):
        raise ValueError("a grammar needs an end token, and the request or the model has none")
    if len(request.prompt_ids) + min(request.stop.max_tokens, 1) > max_length:
        raise PromptTooLongError(len(request.prompt_ids), max_length)
