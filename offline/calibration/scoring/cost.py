"""The cost of passes on this machine: of a draft pass by the sub-layers it keeps, of a full pass by its rows.

It is fitted to the lower quartile of 31 timings of each pass: other programs only ever add time, so the
short ones are nearest to the truth. Times are in seconds, with the output head and the choice of a token.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from offline.loaded_model import LoadedModel
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from server.engine import Decoder, DraftModel, KVCache, SkipMask, TokenBatch, interleaved_quartiles

LONGEST_DRAFT = 12
"""Longest draft that is considered; verification is measured up to one row more."""
CONTEXT = 128
"""Tokens in the cache before a timed pass."""
CHAIN = 4
"""Tokens of a timed draft: the work of starting one is shared by about so many."""
ROUNDS = 31


class CostModel(Strict):
    """A draft pass costs base + attention * kept attentions + mlp * kept MLPs, a full pass of r rows `full[r - 1]`."""

    num_layers: int
    base: float
    attention: float
    mlp: float
    full: list[float]

    def draft(self, mask: SkipMask) -> float:
        """Seconds to draft one token with this mask."""
        kept_attention = self.num_layers - len(mask.attention)
        return self.base + self.attention * kept_attention + self.mlp * (self.num_layers - len(mask.mlp))

    def verify(self, rows: int) -> float:
        """Seconds of a full pass over this many tokens."""
        return self.full[rows - 1]

    @property
    def plain(self) -> float:
        return self.full[0]


class MeasuredCost(StageRecord):
    """The fitted model, and its largest relative error on a measured draft pass."""

    model: CostModel
    worst_error: float


def measure_cost(loaded: LoadedModel, work: Path) -> MeasuredCost:
    """The cost of passes, read from the work folder where it was measured with as many threads."""
    digest = digest_of(loaded.digest, torch.get_num_threads(), LONGEST_DRAFT, CONTEXT, ROUNDS)
    return reused_or_made(work / "cost.json", MeasuredCost, digest, lambda: make_cost(loaded, digest))


def make_cost(loaded: LoadedModel, digest: str) -> MeasuredCost:
    """Times draft passes of several masks and full passes of several rows, in turn, so that noise spreads evenly."""
    num_layers = loaded.model.config.num_layers
    masks = timing_masks(num_layers)
    context = min(CONTEXT, loaded.model.config.max_length - LONGEST_DRAFT - 1)
    cache = loaded.model.new_cache(1, context + LONGEST_DRAFT + 1)
    drafts = [partial(draft_passes, loaded, cache, context, mask) for mask in masks]
    checks = [partial(full_pass, loaded.model, cache, context, rows) for rows in range(1, LONGEST_DRAFT + 2)]
    rounds = tqdm(range(ROUNDS), "cost of passes", delay=2, leave=False)
    times = interleaved_quartiles([*drafts, *checks], rounds)
    per_token = [seconds / CHAIN for seconds in times[: len(masks)]]
    fitted = fit(num_layers, masks, per_token, times[len(masks) :])
    errors = [abs(fitted.draft(mask) / measured - 1) for mask, measured in zip(masks, per_token, strict=True)]
    half = fitted.draft(masks[1]) / fitted.plain
    log.info(
        "cost: a full pass takes %.2f ms, one of the first half of the layers %.2f of it", 1e3 * fitted.plain, half
    )
    return MeasuredCost(digest=digest, model=fitted, worst_error=max(errors))


def timing_masks(num_layers: int) -> list[SkipMask]:
    """Masks whose numbers of kept attentions and MLPs vary independently; the second skips the last half."""
    none: frozenset[int] = frozenset()
    every, back, tail = (frozenset(range(first, num_layers)) for first in (0, num_layers // 2, num_layers // 4))
    both = [SkipMask(layers, layers) for layers in (none, back, tail, every)]
    one = [SkipMask(every, none), SkipMask(none, every), SkipMask(back, none), SkipMask(none, back)]
    return both + one


@torch.inference_mode()
def draft_passes(loaded: LoadedModel, cache: KVCache, context: int, mask: SkipMask) -> None:
    """Passes as the engine drafts `CHAIN` tokens, chosen and judged each."""
    model, draft = loaded.model.draft, DraftModel(mask)
    if model.native:
        model.native.draft(TokenBatch.of([(0, context, [1])], cache), cache, draft, [CHAIN], 0.0)
        return
    for step in range(CHAIN):
        batch = TokenBatch.of([(0, context + step, [1])], cache)
        top, token = torch.softmax(model.logits(model.forward(batch, cache, draft)), -1).max(-1)
        top.tolist(), token.tolist()


@torch.inference_mode()
def full_pass(model: Decoder, cache: KVCache, context: int, rows: int) -> None:
    """A pass as the engine verifies `rows` tokens."""
    model.greedy(TokenBatch.of([(0, context, [1] * rows)], cache), cache)


def fit(num_layers: int, masks: Sequence[SkipMask], drafts: Sequence[float], full: Sequence[float]) -> CostModel:
    """Least squares of relative errors with no negative part; full passes are made to never fall with more rows."""
    kept = np.array([[1, num_layers - len(m.attention), num_layers - len(m.mlp)] for m in masks], dtype=float)
    measured = np.array(drafts, dtype=float)
    # Divided by what was measured: errors count by their share, or the cheap deep masks would hardly count.
    (base, attention, mlp), _ = nnls(kept / measured[:, None], np.ones(len(masks)))
    rising = np.maximum.accumulate(np.array(full, dtype=float))
    return CostModel(
        num_layers=num_layers, base=float(base), attention=float(attention), mlp=float(mlp), full=rising.tolist()
    )
