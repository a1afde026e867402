"""The memory plan: what weights, drafts, cache and passes will take, before any of it is loaded.

A machine that has too little says so by killing the process, in the middle of loading or hours later. So the sum is
made first; what nobody has chosen is made to fit, and what was chosen and cannot fit is refused with the numbers.
"""

from dataclasses import dataclass, replace

from server.engine.config import EngineConfig
from server.engine.kvcache.budget import STEP, block_bytes
from server.engine.kvcache.cache import BLOCK_LENGTH, blocks_of
from server.engine.model.checked import MOST_LOGITS
from server.engine.model.footprint import Outline
from server.engine.sampling.own_tokens import MOST_ADJUSTED
from server.engine.types import MAX_DRAFT

MB = 1_000_000
PROGRAM = {"cpu": 500 * MB, "cuda": 800 * MB}
"""Python, torch and tokenizer; on a GPU what its driver and torch's products take of it."""
MOST_SLOTS = EngineConfig().max_batch
"""Slots where nobody says how many."""
ENOUGH = 4096
"""Tokens of a context that scratch is reckoned with where nobody says how many."""
CONTEXTS = 2
"""So many of the longest contexts fit the cache where nobody says how long they may be: one leaves others room."""
COPIES = 12
"""Of logits while they are adjusted: penalties make six, and the heap was seen to keep twice as much."""
SHARE = 0.75
"""Of the memory that is left, a cache whose size nobody has chosen takes this: others use the machine too."""


class MemoryPlanError(ValueError):
    """The memory does not hold what is asked for; the message has the numbers, and what to change."""


@dataclass(frozen=True)
class Wishes:
    """What was chosen of the cache; None is for the plan to choose."""

    num_slots: int | None = None
    max_length: int | None = None
    cache_bytes: int | None = None


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of each part, in all of what there is; slots, the longest context, and tokens of all contexts together."""

    available: int
    weights: int
    draft_weights: int
    cache: int
    scratch: int
    loading: int
    num_slots: int
    max_length: int
    num_tokens: int

    @property
    def needed(self) -> int:
        """The most that there is at once: while loading there is no cache yet."""
        return self.weights + self.draft_weights + max(self.cache + self.scratch, self.loading)

    def __str__(self) -> str:
        slots = f"{self.num_slots} slot{'s' * (self.num_slots != 1)} of up to {self.max_length:,}"
        cache = f"cache {mb(self.cache)} ({self.num_tokens:,} tokens, {slots})"
        weights = f"weights {mb(self.weights)}, draft weights {mb(self.draft_weights)}"
        return f"{weights}, {cache}, scratch {mb(self.scratch)}, of {mb(self.available)}"


def plan_memory(outline: Outline, draft_bytes: int, config: EngineConfig, wishes: Wishes, available: int) -> MemoryPlan:
    """The plan of a model and its copy to draft with; raises `MemoryPlanError` where not even the least fits."""
    weights, scratch = outline.weight_bytes, scratch_bytes(outline, config, wishes.num_slots or MOST_SLOTS)
    loading = outline.loading_bytes + PROGRAM[outline.device.type]
    fixed = MemoryPlan(available, weights, draft_bytes, 0, scratch, loading, 0, 0, 0)
    if fixed.needed > available:
        raise MemoryPlanError(f"{described(fixed)} do not fit: {advice(outline, draft_bytes)}")
    left = available - weights - draft_bytes - scratch
    room = round(SHARE * left) if wishes.cache_bytes is None else wishes.cache_bytes
    if room > left:
        raise MemoryPlanError(f"--cache-memory of {mb(room)} does not fit: {described(fixed)} leave {mb(left)} for it")
    at_most = left if wishes.cache_bytes is None else room
    num_slots = wishes.num_slots or MOST_SLOTS
    # A cache has one block more than it deals out.
    size, others = block_bytes(outline.config, outline.dtype), 1
    fitting = max(room // size - others, 0) * BLOCK_LENGTH
    max_length = context(outline, wishes, fitting)
    num_tokens = max(fitting if wishes.cache_bytes else min(fitting, num_slots * max_length), max_length)
    cache = (blocks_of(num_tokens) + others) * size
    if cache > at_most:
        asked = f"keys and values of a context of {max_length:,} tokens take {mb(cache)}"
        shorter = (at_most // size - others) * BLOCK_LENGTH
        ways = [f"--max-length {shorter}"] * (shorter > 1)
        ways += ["more memory" if wishes.cache_bytes is None else "a larger --cache-memory"]
        raise MemoryPlanError(f"{asked}, and {described(fixed)} leave {mb(at_most)} for them: {alternatives(ways)}")
    return replace(fixed, cache=cache, num_slots=num_slots, max_length=max_length, num_tokens=num_tokens)


def context(outline: Outline, wishes: Wishes, fitting: int) -> int:
    """The longest context: as chosen, else what leaves others room among so many tokens; the model's at most."""
    limit = outline.config.max_length
    if wishes.max_length is not None:
        return min(wishes.max_length, limit)
    return min(fitting // CONTEXTS // STEP * STEP or STEP, limit)


def scratch_bytes(outline: Outline, config: EngineConfig, num_slots: int) -> int:
    """What passes write beside the cache, the counts that drafts are taken from, and the program itself.

    Logits are those of a check, `MOST_LOGITS` rows at a time, of the next drafted tokens, by the model and by its copy,
    and the copies of those that requests adjust, a few rows at a time. A step's activations are those of the tokens
    that it reads and of all drafts at their longest; in torch there is the mask of attention too, which has a number
    for each token that a step reads, query head of a group and position.
    """
    shape = outline.config
    logits = 4 * (MOST_LOGITS + 2 * num_slots + COPIES * max(num_slots, MOST_ADJUSTED)) * shape.vocabulary_size
    widths = 4 * shape.hidden_size + 3 * shape.intermediate_size + 4 * shape.num_heads * shape.head_dim
    activations = 4 * (config.prefill_chunk + num_slots * (MAX_DRAFT + 1)) * widths
    mask = 0
    if not outline.has_kernels:
        context = min(config.max_length or ENOUGH, shape.max_length)
        mask = config.prefill_chunk * shape.num_groups * context * outline.dtype.itemsize
    return logits + activations + mask + config.history_bytes + PROGRAM[outline.device.type]


def described(plan: MemoryPlan) -> str:
    loading = f", {mb(plan.loading)} while loading" if plan.loading > plan.scratch else ""
    parts = [f"weights ({mb(plan.weights)})", f"draft weights ({mb(plan.draft_weights)})" if plan.draft_weights else ""]
    named = ", ".join(part for part in parts if part)
    return f"{named} and scratch ({mb(plan.scratch)}{loading}) of {mb(plan.available)} memory"


def advice(outline: Outline, draft_bytes: int) -> str:
    """What a user may change for the weights to fit."""
    ways = ["--draft-weights none"] if draft_bytes else []
    if outline.has_kernels and outline.average_bits > 8.5:
        ways += ["--quantization int8 or int4"]
    return alternatives([*ways, "a smaller model", "more memory"])


def alternatives(ways: list[str]) -> str:
    """`use a, b or c`."""
    return "use " + " or ".join(filter(None, [", ".join(ways[:-1]), ways[-1]]))


def mb(num_bytes: int) -> str:
    return f"{num_bytes / MB:,.0f} MB"
