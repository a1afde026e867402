"""Stage 3, the verdict: which domains gain from masks of their own, beyond the chance in finding them.

All figures here are of held-out prompts, which no search saw. A domain keeps its own mask where that
beats the mixed one by more than the noise of the search and by more than the prompts' scatter. Two
domains whose masks do for each other share one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.calibration.scoring.continuations import Texts
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.replay import DraftRule, Outcome, Trace, best_rule
from offline.calibration.scoring.score import MaskScorer, Score, score_traces
from offline.calibration.search.search import FIRST_HALF, OTHER_SEED, SECOND_HALF, DomainMasks
from offline.evaluation.summary import Interval, interval
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings
from server.engine import Decoder, JsonMask, SkipMask


class Verdict(Strict):
    """A domain's mask with its held-out figures; `mask_of` names the domain whose mask it is, or `mixed`."""

    name: str
    mask_of: str
    mask: JsonMask
    score: Score
    speedup: Interval
    acceptance: Interval
    own: Score
    mixed: Score
    gain: Interval
    """Predicted speed-up of the own mask less that of the mixed mask."""
    seed_noise: float | None
    """Difference between masks searched with two seeds; None without controls, as below."""
    prompt_noise: float | None
    """Difference between masks searched on two halves of the search prompts."""

    @property
    def noise(self) -> float:
        """The part of a difference between two masks that chance in the search can make."""
        return max(self.seed_noise or 0.0, self.prompt_noise or 0.0)

    @property
    def pays(self) -> bool:
        """Whether the gain is above the noise, and the low end of its interval above zero."""
        return self.gain.median > self.noise and self.gain.low > 0


class Verdicts(StageRecord):
    """The masks that go into the artifact, and the rule by which all of them draft.

    `cross` holds predicted speed-ups on held-out prompts: a row per searched mask, the domains' in
    order and then the mixed one, a column per domain.
    """

    rule: DraftRule
    mixed: Verdict
    domains: list[Verdict]
    cross: list[list[float]]

    @property
    def num_masks(self) -> int:
        return len({verdict.mask_of for verdict in self.domains})


def judge(
    loaded: LoadedModel,
    texts: Mapping[str, Texts],
    found: Mapping[str, DomainMasks],
    cost: CostModel,
    settings: CalibrationSettings,
    work: Path,
) -> Verdicts:
    """Verdicts on all domains; `found` holds their masks and those of `mixed`."""
    digest = digest_of([texts[name].digest for name in texts], [masks.digest for masks in found.values()])

    def make() -> Verdicts:
        return Judge(loaded.model, texts, found, cost, settings.seed).verdicts(digest)

    record = reused_or_made(work / "search.json", Verdicts, digest, make)
    log.info("search: %d domains share %d masks", len(record.domains), record.num_masks)
    return record


class Judge:
    """Scores the found masks on held-out texts."""

    def __init__(
        self,
        model: Decoder,
        texts: Mapping[str, Texts],
        found: Mapping[str, DomainMasks],
        cost: CostModel,
        seed: int,
    ) -> None:
        self.names = list(texts)
        self.found = found
        self.cost = cost
        self.seed = seed
        own = [(found[name].own.mask, MaskScorer(model, texts[name].search)) for name in self.names]
        self.rule = best_rule([(mask, scorer.traces(mask)) for mask, scorer in own], cost)
        self.scorers = {name: MaskScorer(model, texts[name].heldout) for name in self.names}
        self.seen: dict[tuple[str, SkipMask], list[Trace]] = {}

    def traces(self, name: str, mask: SkipMask) -> list[Trace]:
        """On a domain's held-out texts, or on all for `mixed`; remembered, since tables ask again."""
        if name == MIXED:
            return [trace for domain in self.names for trace in self.traces(domain, mask)]
        if (name, mask) not in self.seen:
            self.seen[name, mask] = self.scorers[name].traces(mask)
        return self.seen[name, mask]

    def score(self, name: str, mask: SkipMask) -> Score:
        return score_traces(self.traces(name, mask), mask, self.rule, self.cost)

    def outcome(self, name: str, mask: SkipMask) -> Outcome:
        return Outcome.of(self.traces(name, mask), mask, self.rule, self.cost)

    def speedups(self, name: str, mask: SkipMask) -> NDArray[np.float64]:
        return self.outcome(name, mask).speedups(self.seed)

    def verdicts(self, digest: str) -> Verdicts:
        masks = {name: self.found[name].own.mask for name in [*self.names, MIXED]}
        first = [self.verdict(name, name, masks[name]) for name in self.names]
        owners = {v.name: v.name if v.pays else MIXED for v in first}
        shared = share(owners, {v.name: v.noise for v in first}, lambda name, by: self.score(name, masks[by]).speedup)
        cross = [[self.score(name, mask).speedup for name in self.names] for mask in masks.values()]
        return Verdicts(
            digest=digest,
            rule=self.rule,
            mixed=self.verdict(MIXED, MIXED, masks[MIXED]),
            domains=[self.verdict(name, shared[name], masks[shared[name]]) for name in self.names],
            cross=cross,
        )

    def verdict(self, name: str, mask_of: str, mask: SkipMask) -> Verdict:
        """The figures of a domain that drafts with `mask`, which was searched for `mask_of`."""
        found, mixed = self.found[name], self.found[MIXED].own.mask
        own = found.own.mask
        controls = {control: run.mask for control, run in found.controls.items()}

        def difference(one: SkipMask | None, other: SkipMask | None) -> float | None:
            if one is None or other is None:
                return None
            return abs(self.score(name, one).speedup - self.score(name, other).speedup)

        return Verdict(
            name=name,
            mask_of=mask_of,
            mask=mask,
            score=self.score(name, mask),
            speedup=interval(self.speedups(name, mask)),
            acceptance=interval(self.outcome(name, mask).acceptances(self.seed)),
            own=self.score(name, own),
            mixed=self.score(name, mixed),
            gain=interval(self.speedups(name, own) - self.speedups(name, mixed)),
            seed_noise=difference(own, controls.get(OTHER_SEED)),
            prompt_noise=difference(controls.get(FIRST_HALF), controls.get(SECOND_HALF)),
        )


def share(
    owners: Mapping[str, str], noise: Mapping[str, float], speedup: Callable[[str, str], float]
) -> dict[str, str]:
    """Whose mask each domain takes, where `owners` says whose it would: `speedup(a, b)` is a's with the mask of b.

    The mask of a later domain goes where an earlier one's does as well for both, within their noise.
    """
    shared = dict(owners)
    own = [name for name, owner in owners.items() if owner == name]
    for place, name in enumerate(own):
        for earlier in own[:place]:
            losses = [(name, speedup(name, name) - speedup(name, earlier))]
            losses.append((earlier, speedup(earlier, earlier) - speedup(earlier, name)))
            if shared[earlier] == earlier and all(loss <= noise[domain] for domain, loss in losses):
                shared[name] = earlier
                break
    return shared
