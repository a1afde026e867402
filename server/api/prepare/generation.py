"""A validated body -> the prompts for the worker: sampling, stop conditions, method and route of each choice."""

from dataclasses import replace

from server.api.errors import BadRequestError, ContextLengthError, NotFoundError
from server.api.schema.generation import GenerationBody
from server.api.schema.sampling import Speculation
from server.engine import (
    Adjustments,
    CompiledGrammar,
    GenerationRequest,
    Route,
    SamplingParams,
    StopConditions,
    Thinking,
)
from server.generation import Prompt
from server.served_model import ServedModel
from server.tickets import QueueLimits

GREEDY_BELOW = 1e-4
"""Temperatures below it count as 0: dividing by them would overflow, and the likeliest token wins long before."""


def check_model(name: str, served: ServedModel) -> None:
    if name != served.name:
        message = f"The model '{name}' does not exist; this server has '{served.name}'."
        raise NotFoundError(message, "model", "model_not_found")


def check_body(body: GenerationBody, served: ServedModel, max_choices: int) -> None:
    """Refuses a valid body that does not fit this server: another model, too many choices, unknown token ids."""
    check_model(body.model, served)
    check_vocabulary([int(token) for token in body.logit_bias or {}], "logit_bias", served.vocabulary_size)
    check_vocabulary(body.stop_token_ids or [], "stop_token_ids", served.vocabulary_size)
    if body.choices_per_prompt > max_choices:
        message = f"Invalid value for 'n': this server makes at most {max_choices} choices."
        raise BadRequestError(message, "n", "invalid_value")
    if body.is_constrained and not served.checkpoint.eos_ids and not body.stop_token_ids:
        message = "This model has no end token, and JSON and calls of tools need one: give stop_token_ids."
        raise BadRequestError(message, "stop_token_ids", "missing_required_parameter")


def check_size(num_sequences: int, longest_text: int, served: ServedModel, max_sequences: int) -> None:
    """Refuses what no request may ask for, before any work: too many sequences, or a text that cannot fit."""
    if num_sequences > max_sequences:
        message = (
            f"The request asks for {num_sequences} answers, prompts times n; this server makes {max_sequences} at most."
        )
        raise BadRequestError(message, None, "too_many_sequences")
    check_characters(longest_text, served)


def check_total(
    encoded: list[list[int]], num_choices: int, param: str, served: ServedModel, limits: QueueLimits
) -> None:
    """Refuses prompts that take more than half of the queue's tokens, unless they are no more than one context."""
    num_tokens = num_choices * sum(len(ids) for ids in encoded)
    limit = max(limits.max_tokens // 2, served.max_length)
    if len(encoded) * num_choices > 1 and num_tokens > limit:
        message = (
            f"The prompts have {num_tokens} tokens in all, counted for each of n; this server takes {limit} a request."
        )
        raise BadRequestError(message, param, "too_many_tokens")


def check_characters(num_characters: int, served: ServedModel) -> None:
    """Refuses a text that is longer than the context would be if each of its tokens were the longest one."""
    if num_characters > served.most_characters:
        raise ContextLengthError(
            f"This model's maximum context length is {served.max_length} tokens, which is at most "
            f"{served.most_characters} characters. Your prompt has {num_characters} characters."
        )


def prompts(
    body: GenerationBody,
    encoded: list[list[int]],
    served: ServedModel,
    grammar: CompiledGrammar | None = None,
    owner: str | None = None,
    prediction: tuple[int, ...] = (),
    client: str | None = None,
    thinking: Thinking = Thinking.NONE,
) -> list[Prompt]:
    """One prompt for each choice; two texts with `n: 3` make six, the three of the first text first.

    The choices of a text count up from the body's seed: 7, 8, 9.
    """
    speculation = body.speculation or Speculation()
    budget = None if body.most_thoughts is None else served.codec.thinking_budget(body.most_thoughts, thinking)
    drawn = sampling(body, served.checkpoint.sampling)
    template = GenerationRequest(
        prompt_ids=[],
        sampling=replace(drawn, adjustments=replace(drawn.adjustments, thinking=budget)),
        stop=stop_conditions(body, served),
        method=method(speculation, served),
        route=route(speculation, served),
        max_draft=speculation.max_draft,
        num_logprobs=body.num_logprobs,
        scores_prompt=body.is_echoed and body.num_logprobs is not None,
        grammar=grammar,
        owner=owner,
        client=client,
        prediction=prediction,
        is_traced=body.is_traced,
    )
    shared = (tuple(body.stops), body.is_echoed, body.operation)
    return [
        Prompt(replace(template, prompt_ids=ids, sampling=nth_choice(template.sampling, choice)), *shared)
        for ids in encoded
        for choice in range(body.choices_per_prompt)
    ]


def stop_conditions(body: GenerationBody, served: ServedModel) -> StopConditions:
    min_tokens, limit = body.min_tokens or 0, body.token_limit
    if limit is not None and min_tokens > limit:
        message = f"Invalid value for 'min_tokens': {min_tokens} is more than the {limit} of max_tokens."
        raise BadRequestError(message, "min_tokens", "invalid_value")
    ends = set(body.stop_token_ids or []).union(() if body.ignore_eos else served.checkpoint.eos_ids)
    return StopConditions(served.max_length if limit is None else limit, frozenset(ends), min_tokens)


def adjustments(body: GenerationBody) -> Adjustments:
    return Adjustments(
        logit_bias=tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items()),
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
    )


def sampling(body: GenerationBody, model: SamplingParams) -> SamplingParams:
    """The body's values; where it has none, the model's own."""
    temperature = model.temperature if body.temperature is None else body.temperature
    top_k = model.top_k if body.top_k is None else body.top_k
    return SamplingParams(
        temperature=temperature if temperature >= GREEDY_BELOW else 0.0,
        top_p=model.top_p if body.top_p is None else body.top_p,
        top_k=max(top_k, 0),
        min_p=body.min_p or 0.0,
        seed=body.seed,
        adjustments=adjustments(body),
    )


def nth_choice(sampling: SamplingParams, choice: int) -> SamplingParams:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + choice)


def method(speculation: Speculation, served: ServedModel) -> str | None:
    asked = speculation.method
    if asked is not None and (missing := served.engine.lacks(asked)):
        message = f"Method '{asked}' needs {missing}, and this server has none."
        raise BadRequestError(message, "speculation.method", "invalid_value")
    return asked


def route(speculation: Speculation, served: ServedModel) -> Route | None:
    if speculation.domain is None:
        return None
    found = served.route(speculation.domain)
    if found is None:
        known = ", ".join(served.domains) or "none, for want of a routing artifact"
        message = f"Unknown domain '{speculation.domain}'; this server has: {known}."
        raise BadRequestError(message, "speculation.domain", "invalid_value")
    return found


def check_ids(encoded: list[list[int]], param: str, vocabulary_size: int) -> None:
    """Refuses empty prompts, and ids outside the model's vocabulary; `param` is the field that the error names."""
    for ids in encoded:
        if not ids:
            raise BadRequestError("The prompt has no tokens.", param, "invalid_value")
        check_vocabulary(ids, param, vocabulary_size)


def check_vocabulary(ids: list[int], param: str, vocabulary_size: int) -> None:
    if ids and max(ids) >= vocabulary_size:
        message = f"Token {max(ids)} is outside the model's vocabulary of {vocabulary_size}."
        raise BadRequestError(message, param, "invalid_value")
