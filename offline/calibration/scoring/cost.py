"""The cost of passes on this machine: of a draft pass by what it computes, of a full pass by its rows.

It is fitted to the lower quartile of 31 timings of each pass: other programs only ever add time, so the
short ones are nearest to the truth. Times are in seconds, with the choice of a token. A draft costs what it adds to a
step: after a full pass the caches hold nothing of what a cheap draft reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from tqdm import tqdm

from offline.calibration.scoring.drafts import DraftChoice
from offline.loaded_model import LoadedModel
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from server.engine import (
    Decoder,
    DraftHead,
    DraftModel,
    DraftVocabulary,
    KVCache,
    Patch,
    SkipMask,
    TokenBatch,
    interleaved_quartiles,
)

LONGEST_DRAFT = 12
"""Longest draft that is considered; verification is measured up to one row more."""
CONTEXT = 128
"""Tokens in the cache before a timed pass."""
CHAIN = 4
"""Tokens of a timed draft: the work of starting one is shared by about so many."""
ROUNDS = 31
TIMED_SHARE = 1 / 8
"""The part of the vocabulary that timed drafts score beside the whole."""
LEAST_SECONDS = 1e-6
"""Of a draft that the noise of timing hides."""
FURTHER_ROWS = 128
"""Rows that a text's own tokens are taken to add to a vocabulary's."""


class PassCost(Strict):
    """A draft pass costs base + head * share of the tokens scored + attention * kept attentions + mlp * kept MLPs.

    With a patch in place of all layers it costs base + head * share + patch.
    """

    base: float
    head: float
    attention: float
    mlp: float
    patch: float

    def seconds(self, num_layers: int, mask: SkipMask, share: float, is_patched: bool = False) -> float:
        kept_attention, kept_mlp = num_layers - len(mask.attention), num_layers - len(mask.mlp)
        layers = self.patch if is_patched else self.attention * kept_attention + self.mlp * kept_mlp
        return self.base + self.head * share + layers


class CostModel(Strict):
    """The cost of drafts with the model's own weights and with its copy, and of full passes: `full[rows - 1]`."""

    num_layers: int
    vocabulary_size: int
    own: PassCost
    low_bit: PassCost | None = None
    full: list[float]

    def weights(self, is_low_bit: bool) -> PassCost:
        """Raises `ValueError` for a copy that there was none of."""
        if not is_low_bit:
            return self.own
        if self.low_bit is None:
            raise ValueError("the passes of a low-bit copy were not timed")
        return self.low_bit

    def rows(self, choice: DraftChoice) -> int:
        """Tokens that a draft's pass scores: its vocabulary's, and `FURTHER_ROWS` of the text."""
        size = choice.vocabulary.size + FURTHER_ROWS if choice.vocabulary else self.vocabulary_size
        return min(size, self.vocabulary_size)

    def draft(self, choice: DraftChoice) -> float:
        """Seconds to draft one token."""
        share = self.rows(choice) / self.vocabulary_size
        is_patched = choice.patch_of is not None
        return self.weights(choice.is_low_bit).seconds(self.num_layers, choice.mask, share, is_patched)

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


@dataclass(frozen=True)
class TimedDraft:
    """A draft that is timed; without a head it scores the whole vocabulary."""

    decoder: Decoder
    draft: DraftModel
    head: DraftHead | None = None

    @property
    def share(self) -> float:
        return len(self.head.token_ids) / self.head.vocabulary_size if self.head else 1.0

    @property
    def is_patched(self) -> bool:
        return self.draft.patch is not None


def measure_cost(loaded: LoadedModel, work: Path) -> MeasuredCost:
    """The cost of passes, read from the work folder where it was measured with as many threads."""
    digest = digest_of(
        loaded.digest, torch.get_num_threads(), LONGEST_DRAFT, CONTEXT, ROUNDS, TIMED_SHARE, LEAST_SECONDS
    )
    return reused_or_made(work / "cost.json", MeasuredCost, digest, lambda: make_cost(loaded, digest))


def make_cost(loaded: LoadedModel, digest: str) -> MeasuredCost:
    """Times draft passes of several kinds and full passes of several rows, in turn, so that noise spreads evenly."""
    model, config = loaded.model, loaded.model.config
    kinds = [timed_drafts(decoder) for decoder in (model, model.low_bit) if decoder]
    context = min(CONTEXT, config.max_length - LONGEST_DRAFT - 1)
    cache = model.new_cache(1, context + LONGEST_DRAFT + 1)
    steps = [partial(drafting_step, model, draft, cache, context) for kind in kinds for draft in kind]
    checks = [partial(full_pass, model, cache, context, rows) for rows in range(1, LONGEST_DRAFT + 2)]
    times = interleaved_quartiles([*steps, *checks], tqdm(range(ROUNDS), "cost of passes", delay=2, leave=False))
    full = times[len(steps) :]
    per_token = [max(seconds - full[0], LEAST_SECONDS) / CHAIN for seconds in times[: len(steps)]]
    costs, errors = [], []
    for kind in kinds:
        measured, per_token = per_token[: len(kind)], per_token[len(kind) :]
        cost = fit(config.num_layers, kind, measured)
        predicted = [cost.seconds(config.num_layers, each.draft.mask, each.share, each.is_patched) for each in kind]
        errors += [abs(one / other - 1) for one, other in zip(predicted, measured, strict=True)]
        costs.append(cost)
    fitted = CostModel(
        num_layers=config.num_layers,
        vocabulary_size=config.vocabulary_size,
        own=costs[0],
        low_bit=costs[1] if len(costs) > 1 else None,
        # Full passes are made to never fall with more rows.
        full=np.maximum.accumulate(full).tolist(),
    )
    log.info("cost: a full pass takes %.2f ms, drafts of it %s", 1e3 * fitted.plain, shares_of_plain(fitted))
    return MeasuredCost(digest=digest, model=fitted, worst_error=max(errors))


def shares_of_plain(cost: CostModel) -> str:
    """What a drafted token costs without skipping anything, as `0.98 (low-bit 0.41)`."""
    own, low_bit = (DraftChoice(is_low_bit=is_low_bit) for is_low_bit in (False, True))
    further = f" (low-bit {cost.draft(low_bit) / cost.plain:.2f})" if cost.low_bit else ""
    return f"{cost.draft(own) / cost.plain:.2f}{further}"


def timed_drafts(decoder: Decoder) -> list[TimedDraft]:
    """Drafts of all timing masks and of a patch, and some of them over a part of the vocabulary."""
    few = range(max(int(TIMED_SHARE * decoder.config.vocabulary_size), 1))
    head = DraftHead(decoder, DraftVocabulary(tuple(few)), tail=0)
    size = decoder.config.hidden_size
    patched = DraftModel(patch=Patch(0, (torch.zeros(size, 2 * size),), torch.zeros(size)))
    masked = [DraftModel(mask) for mask in timing_masks(decoder.config.num_layers)]
    whole = [TimedDraft(decoder, draft) for draft in [*masked, patched]]
    return whole + [TimedDraft(decoder, draft, head) for draft in [*masked[:4], patched]]


def timing_masks(num_layers: int) -> list[SkipMask]:
    """Masks whose numbers of kept attentions and MLPs vary independently; the second skips the last half."""
    none: frozenset[int] = frozenset()
    every, back, tail = (frozenset(range(first, num_layers)) for first in (0, num_layers // 2, num_layers // 4))
    both = [SkipMask(layers, layers) for layers in (none, back, tail, every)]
    one = [SkipMask(every, none), SkipMask(none, every), SkipMask(back, none), SkipMask(none, back)]
    return both + one


@torch.inference_mode()
def draft_passes(timed: TimedDraft, cache: KVCache, context: int) -> None:
    """Passes as the engine drafts `CHAIN` tokens, chosen and judged each."""
    model, draft = timed.decoder, timed.draft
    states = torch.zeros(1, model.config.hidden_size, device=model.device)
    if model.native:
        rows = timed.head.native if timed.head else None
        model.native.draft(TokenBatch([(0, context, [1])], cache), cache, draft, [CHAIN], 0.0, rows, states)
        return
    for step in range(CHAIN):
        batch = TokenBatch([(0, context + step, [1])], cache)
        states = model.forward(batch, cache, draft, states)
        logits = (timed.head or model).logits(states)
        top, token = torch.softmax(logits, -1).max(-1)
        top.tolist(), token.tolist()


def drafting_step(model: Decoder, timed: TimedDraft, cache: KVCache, context: int) -> None:
    """A draft, and a full pass over one token."""
    draft_passes(timed, cache, context)
    full_pass(model, cache, context, 1)


@torch.inference_mode()
def full_pass(model: Decoder, cache: KVCache, context: int, rows: int) -> None:
    """A pass as the engine verifies `rows` tokens."""
    model.greedy(TokenBatch([(0, context, [1] * rows)], cache), cache)


def fit(num_layers: int, drafts: Sequence[TimedDraft], seconds: Sequence[float]) -> PassCost:
    """Least squares of relative errors with no negative part."""
    kept = []
    for each in drafts:
        mask = each.draft.skips(num_layers)
        layers = [num_layers - len(mask.attention), num_layers - len(mask.mlp)]
        kept.append([1, each.share, *layers, int(each.is_patched)])
    # Divided by what was measured: errors count by their share, or the cheap deep masks would hardly count.
    scaled = np.array(kept, dtype=float) / np.array(seconds, dtype=float)[:, None]
    parts, _ = nnls(scaled, np.ones(len(drafts)))
    base, head, attention, mlp, patch = map(float, parts)
    return PassCost(base=base, head=head, attention=attention, mlp=mlp, patch=patch)
