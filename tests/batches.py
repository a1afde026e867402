"""Requests for the tiny model, and engines that run them until nothing is left."""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from server.engine import (
    Decoder,
    DraftHead,
    DraftModel,
    Emission,
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCache,
    Patch,
    Route,
    SamplingParams,
    SkipMask,
    StepStats,
    StopConditions,
    TokenBatch,
)
from server.engine.scheduler import StepPlan

Models = Callable[[str], Decoder]
"""A model by its name."""
MASK = SkipMask(frozenset({1, 3}), frozenset({2}))
GREEDY = SamplingParams()


def prompt(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(seed)
    return [1, *(rng.randrange(6, 262) for _ in range(length - 1))]


def request(
    prompt_ids: list[int],
    max_tokens: int = 12,
    stop: frozenset[int] = frozenset(),
    sampling: SamplingParams = GREEDY,
    method: str = "skip",
) -> GenerationRequest:
    stops = StopConditions(max_tokens, stop)
    return GenerationRequest(
        prompt_ids, sampling, stops, method=method, route=Route("test", DraftModel(MASK)), max_draft=4
    )


def new_engine(model: Decoder, max_batch: int = 4, **config: float) -> Engine:
    """With a `prefill_chunk`, a step reads so many tokens of prompts however long that takes."""
    engine = Engine(model, EngineConfig(**{"max_batch": max_batch, "confidence": 0.0, "is_adaptive": False, **config}))  # type: ignore[arg-type]
    if "prefill_chunk" in config:
        for budget in (engine.pace.alone, engine.pace.beside):
            budget.tokens = budget.fewest = budget.most
    return engine


def plain_output(model: Decoder, one: GenerationRequest) -> list[int]:
    stops = StopConditions(one.stop.max_tokens)
    plain = GenerationRequest(one.prompt_ids, one.sampling, stops, method="plain")
    return new_engine(model, 1).generate([plain])[0].output_ids


def run(engine: Engine) -> tuple[list[Emission], list[StepStats]]:
    """Steps until nothing is left."""
    emissions, steps = [], []
    while engine.has_work:
        new, stats = engine.step()
        emissions += new
        steps.append(stats)
    return emissions, steps


def read_prompts(engine: Engine) -> None:
    """Reads the prompts of all that was added and has a slot, up to their first tokens; nothing is decoded."""
    with torch.inference_mode():
        engine.scheduler.admit()
        while chunks := engine.scheduler.chunks(engine.config.prefill_chunk):
            _, states = engine.run(StepPlan([], chunks, len(chunks)), {}, StepStats())
            engine.begin(chunks, states, StepStats())


def started_batch(model: Decoder, cache: KVCache) -> TokenBatch:
    """The next token of each of three prompts, which the cache holds."""
    prompts = [[7, 8, 9], [20, 21], [30, 31, 32, 33]]
    model.forward(TokenBatch([(slot, 0, ids) for slot, ids in enumerate(prompts)], cache), cache)
    return TokenBatch([(slot, len(ids), [50 + slot]) for slot, ids in enumerate(prompts)], cache)


def greedy_chains(
    model: Decoder,
    draft: DraftModel,
    head: Decoder | DraftHead,
    cache: KVCache,
    starts: TokenBatch,
    limits: list[int],
    confidence: float,
    states: Tensor | None = None,
) -> list[list[int]]:
    """Chains token by token: each row goes on while it is sure, up to its own limit; not under the draft's floor.

    `states` [rows, hidden_size] are what a patch reads first.
    """
    chains = []
    for row, ((slot, position, [token]), limit) in enumerate(zip(starts.rows, limits, strict=True)):
        chain: list[int] = []
        top, hidden = 1.0, None if states is None else states[row : row + 1]
        while len(chain) < limit and top >= confidence:
            batch = TokenBatch([(slot, position + len(chain), [(chain or [token])[-1]])], cache)
            hidden = model.forward(batch, cache, draft, hidden)
            logits = head.logits(hidden)
            top = float(logits.softmax(-1).max())
            if top < draft.floor:
                break
            chain.append(int(logits.argmax()))
        chains.append(chain)
    return chains


def random_patch(model: Decoder, start: int, seed: int = 0) -> Patch:
    """A patch that puts about as large states in place of the layers from `start` on as they were."""
    generator, size = torch.Generator().manual_seed(seed), model.config.hidden_size
    weight = torch.randn(size, 2 * size, generator=generator) / (2 * size) ** 0.5
    return Patch(start, (weight.bfloat16().float(),), torch.randn(size, generator=generator) / 10)
