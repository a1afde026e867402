"""What the engine is asked for, and what it refuses to run."""

from dataclasses import dataclass

from server.engine.sampling.grammar import CompiledGrammar
from server.engine.types import MAX_DRAFT, Route, SamplingParams, StopConditions


@dataclass(frozen=True)
class GenerationRequest:
    """What the engine is asked for; None leaves the choice to the engine's configuration or router.

    `num_logprobs` is how many of the most likely tokens to report beside each token; None reports nothing.
    `scores_prompt` reports the prompt's tokens as well. A `grammar` is followed to its end, which `min_tokens`
    does not put off. Answers draft for those of the same `owner` only; without one, for all that have none. Free slots
    are given to `client`s in turns; requests without one are one client's. A `prediction` is what the answer is
    expected to be like, to draft from. One that `is_traced` is told where each token came from.
    """

    prompt_ids: list[int]
    sampling: SamplingParams
    stop: StopConditions
    method: str | None = None
    route: Route | None = None
    max_draft: int | None = None
    num_logprobs: int | None = None
    scores_prompt: bool = False
    grammar: CompiledGrammar | None = None
    owner: str | None = None
    client: str | None = None
    prediction: tuple[int, ...] = ()
    is_traced: bool = False


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
    if request.prediction and not 0 <= min(request.prediction) <= max(request.prediction) < vocabulary_size:
        raise ValueError(f"predicted token ids are between 0 and {vocabulary_size - 1}")
    biased = (token for token, _ in request.sampling.adjustments.logit_bias)
    if not all(0 <= token < vocabulary_size for token in biased):
        raise ValueError(f"biased token ids are between 0 and {vocabulary_size - 1}")
    if request.max_draft is not None and not 0 <= request.max_draft <= MAX_DRAFT:
        raise ValueError(f"max_draft is between 0 and {MAX_DRAFT}")
    if request.grammar and not any(end < vocabulary_size for end in request.stop.token_ids):
        raise ValueError("a grammar needs an end token, and the request or the model has none")
    if len(request.prompt_ids) + min(request.stop.max_tokens, 1) > max_length:
        raise PromptTooLongError(len(request.prompt_ids), max_length)
