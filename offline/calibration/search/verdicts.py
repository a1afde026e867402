"""Stage 3, the verdict: which domains gain from drafts of their own, beyond the chance in finding them.

All figures here are of held-out prompts, which no search saw; a draft's rule is the best one on the search
prompts. A domain keeps its own draft where that beats the mixed one by more than the noise of the search and by
more than the prompts' scatter. Two domains whose drafts do for each other share one.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from offline.calibration.scoring.continuations import Texts
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.drafts import DraftChoice, DraftRule
from offline.calibration.scoring.replay import FIRST_RULE, Outcome, Trace, best_rule
from offline.calibration.scoring.score import PLAIN_SCORE, DraftScorer, Score, score_traces
from offline.calibration.search.race import ALL_HEATS, HALVES, DomainTraces
from offline.calibration.search.search import FIRST_HALF, OTHER_SEED, SECOND_HALF, DomainDrafts
from offline.evaluation.summary import Interval, interval
from offline.prompts import MIXED
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings


class Verdict(Strict):
    """A domain's draft with its held-out figures; `draft_of` names the domain whose draft it is, or `mixed`."""

    name: str
    draft_of: str
    choice: DraftChoice
    rule: DraftRule
    """The best one for this draft on the domain's search texts."""
    score: Score
    speedup: Interval
    acceptance: Interval
    own: Score
    mixed: Score
    gain: Interval
    """Predicted speed-up of the own draft less that of the mixed draft."""
    seed_noise: float | None
    """Difference between drafts searched with two seeds; None without controls, as below."""
    prompt_noise: float | None
    """Difference between drafts searched on two halves of the search prompts."""
    parts: dict[str, float]
    """Predicted speed-up of the draft reduced to its `mask`, its `vocabulary` or its `bits`, and of `all` of it."""

    @property
    def noise(self) -> float:
        """The part of a difference between two drafts that chance in the search can make."""
        return max(self.seed_noise or 0.0, self.prompt_noise or 0.0)

    @property
    def pays(self) -> bool:
        """Whether the gain is above the noise, and the low end of its interval above zero."""
        return self.gain.median > self.noise and self.gain.low > 0


class Verdicts(StageRecord):
    """The drafts that go into the artifact, each with the rule by which it ends.

    `cross` holds predicted speed-ups on held-out prompts: a row per searched draft, the domains' in
    order and then the mixed one, a column per domain.
    """

    mixed: Verdict
    domains: list[Verdict]
    cross: list[list[float]]

    @property
    def all(self) -> list[Verdict]:
        """Those of the domains, and last the mixed one."""
        return [*self.domains, self.mixed]

    @property
    def num_drafts(self) -> int:
        return len({verdict.draft_of for verdict in self.domains})


def judge(
    traces: Mapping[str, DomainTraces],
    texts: Mapping[str, Texts],
    found: Mapping[str, DomainDrafts],
    cost: CostModel,
    settings: CalibrationSettings,
    work: Path,
) -> Verdicts:
    """Verdicts on all domains; `traces` are of their search texts, `found` holds their drafts and those of `mixed`."""
    digest = digest_of([texts[name].digest for name in texts], [drafts.digest for drafts in found.values()])

    def make() -> Verdicts:
        return Judge(traces, texts, found, cost, settings.seed).verdicts(digest)

    record = reused_or_made(work / "search.json", Verdicts, digest, make)
    log.info("search: %d domains share %d drafts", len(record.domains), record.num_drafts)
    return record


class Judge:
    """Scores the found drafts on held-out texts, by the rules that search texts choose."""

    def __init__(
        self,
        traces: Mapping[str, DomainTraces],
        texts: Mapping[str, Texts],
        found: Mapping[str, DomainDrafts],
        cost: CostModel,
        seed: int,
    ) -> None:
        self.names = list(texts)
        self.searched = traces
        self.found = found
        self.cost = cost
        self.seed = seed
        self.scorers = {
            name: DraftScorer(domain.model, domain.parts, texts[name].heldout) for name, domain in traces.items()
        }
        self.seen: dict[tuple[str, DraftChoice], list[Trace]] = {}
        self.rules: dict[tuple[str, DraftChoice], DraftRule] = {}

    def traces(self, name: str, choice: DraftChoice) -> list[Trace]:
        """On a domain's held-out texts, or on all for `mixed`; remembered, since tables ask again."""
        if name == MIXED:
            return [trace for domain in self.names for trace in self.traces(domain, choice)]
        if (name, choice) not in self.seen:
            self.seen[name, choice] = self.scorers[name].traces(choice)
        return self.seen[name, choice]

    def rule(self, name: str, choice: DraftChoice) -> DraftRule:
        """The best rule for a draft on the domain's search texts, or on all for `mixed`."""
        if choice.is_full:
            return FIRST_RULE
        if (name, choice) not in self.rules:
            domains = self.names if name == MIXED else [name]
            groups = [self.searched[each].traces(choice, HALVES, ALL_HEATS) for each in domains]
            self.rules[name, choice] = best_rule([trace for group in groups for trace in group], choice, self.cost)
        return self.rules[name, choice]

    def score(self, name: str, choice: DraftChoice) -> Score:
        if choice.is_full:
            return PLAIN_SCORE
        return score_traces(self.traces(name, choice), choice, self.rule(name, choice), self.cost)

    def outcome(self, name: str, choice: DraftChoice) -> Outcome:
        return Outcome.of(self.traces(name, choice), choice, self.rule(name, choice), self.cost)

    def speedups(self, name: str, choice: DraftChoice) -> NDArray[np.float64]:
        return self.outcome(name, choice).speedups(self.seed)

    def verdicts(self, digest: str) -> Verdicts:
        choices = {name: self.found[name].own.choice for name in [*self.names, MIXED]}
        first = [self.verdict(name, name) for name in self.names]
        owners = {v.name: v.name if v.pays else MIXED for v in first}
        shared = share(owners, {v.name: v.noise for v in first}, lambda name, by: self.score(name, choices[by]).speedup)
        record = Verdicts(
            digest=digest,
            mixed=self.verdict(MIXED, MIXED),
            domains=[self.verdict(name, shared[name]) for name in self.names],
            cross=[[self.score(name, choice).speedup for name in self.names] for choice in choices.values()],
        )
        for domain in self.searched.values():
            domain.release()
        return record

    def verdict(self, name: str, draft_of: str) -> Verdict:
        """The figures of a domain that drafts with what was searched for `draft_of`."""
        found, mixed = self.found[name], self.found[MIXED].own.choice
        choice, own = self.found[draft_of].own.choice, found.own.choice
        controls = {control: run.choice for control, run in found.controls.items()}

        def difference(one: DraftChoice | None, other: DraftChoice | None) -> float | None:
            if one is None or other is None:
                return None
            return abs(self.score(name, one).speedup - self.score(name, other).speedup)

        return Verdict(
            name=name,
            draft_of=draft_of,
            choice=choice,
            rule=self.rule(name, choice),
            score=self.score(name, choice),
            speedup=interval(self.speedups(name, choice)),
            acceptance=interval(self.outcome(name, choice).acceptances(self.seed)),
            own=self.score(name, own),
            mixed=self.score(name, mixed),
            gain=interval(self.speedups(name, own) - self.speedups(name, mixed)),
            seed_noise=difference(own, controls.get(OTHER_SEED)),
            prompt_noise=difference(controls.get(FIRST_HALF), controls.get(SECOND_HALF)),
            parts={part: self.score(name, reduced).speedup for part, reduced in choice.parts.items()},
        )


def share(
    owners: Mapping[str, str], noise: Mapping[str, float], speedup: Callable[[str, str], float]
) -> dict[str, str]:
    """Whose mask each domain takes, where `owners` says whose it would: `speedup(a, b)` is a's with the draft of b.

    The draft of a later domain goes where an earlier one's does as well for both, within their noise.
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
