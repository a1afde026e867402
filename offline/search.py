"""Stage 3: the masks. One search per domain and one over all of them (`mixed`), checked on held-out texts.

A search goes through the simple rules, climbs from the best of them, and ends with rounds of Bayesian
optimisation. A domain keeps a mask of its own only where that beats the mixed mask on its held-out texts.
"""

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from offline.cost import CostModel
from offline.drafting import FIRST_RULE, DraftRule, Trace, best_rule
from offline.proposals import ScoreMask, climb, optimise, prefix_masks, rule_masks
from offline.score import MaskScorer, Score, Text, Texts, score_traces
from offline.settings import CalibrationSettings
from offline.stage import StageRecord, Strict, digest_of, log, reused_or_made
from offline.trials import Trials
from offline.workbench import Workbench
from server.engine import Decoder, MaskRecord, SkipMask

MIXED = "mixed"
CLIMB_SHARE = 0.6
ROUNDS = 4
"""Rounds of Bayesian optimisation, each around the best mask so far."""
FINALISTS = 5


class Choice(Strict):
    """A domain's mask with its held-out score, and the held-out scores of what it was chosen between."""

    name: str
    mask: MaskRecord
    score: Score
    is_own: bool
    own: Score
    mixed: Score
    num_trials: int


class SearchResult(StageRecord):
    rule: DraftRule
    mixed: Choice
    domains: list[Choice]


class TextGroups:
    """Scorers of several domains, so that a mask can be scored on one domain or on all."""

    def __init__(self, model: Decoder, texts: dict[str, list[Text]]) -> None:
        self.scorers = {domain: MaskScorer(model, group) for domain, group in texts.items()}

    def traces(self, name: str, mask: SkipMask) -> list[Trace]:
        chosen = self.scorers.values() if name == MIXED else [self.scorers[name]]
        return [trace for scorer in chosen for trace in scorer.traces(mask)]

    def score(self, name: str, mask: SkipMask, rule: DraftRule, cost: CostModel) -> Score:
        return score_traces(self.traces(name, mask), mask, rule, cost)


def search_masks(
    bench: Workbench, texts: Texts, cost: CostModel, settings: CalibrationSettings, work: Path
) -> SearchResult:
    digest = digest_of(texts.digest, cost.model_dump_json(), settings.budget, settings.seed)

    def make() -> SearchResult:
        return Search(bench.model, texts, cost, settings.budget, settings.seed, work, digest).run()

    return reused_or_made(work / "search.json", SearchResult, digest, make)


class Search:
    """The searches of one calibration; deterministic for its texts, cost model, budget and seed."""

    def __init__(
        self, model: Decoder, texts: Texts, cost: CostModel, budget: int, seed: int, work: Path, digest: str
    ) -> None:
        self.num_layers = model.config.num_layers
        self.cost = cost
        self.budget = budget
        self.seed = seed
        self.work = work
        self.digest = digest
        self.seen = TextGroups(model, texts.search)
        self.heldout = TextGroups(model, texts.heldout)
        self.names = [MIXED, *texts.search]

    def run(self) -> SearchResult:
        rule = self.first_rule()
        trials = {name: self.search_one(number, name, rule) for number, name in enumerate(self.names)}
        winners = [(name, trials[name].best(1)[0]) for name in self.names[1:]]
        rule = best_rule([(mask, self.seen.traces(name, mask)) for name, mask in winners], self.cost)
        log.info("search: drafts of at most %d tokens, confidence %.2f", rule.max_draft, rule.confidence)
        finalists = {name: self.best_heldout(name, trials[name].best(FINALISTS), rule) for name in self.names}
        choices = [self.choose(name, finalists, rule, len(trials[name].scores)) for name in self.names]
        return SearchResult(digest=self.digest, rule=rule, mixed=choices[0], domains=choices[1:])

    def first_rule(self) -> DraftRule:
        """The rule that suits the best early exit, to search with."""
        exits = tqdm(prefix_masks(self.num_layers), "early exits", delay=2, leave=False)
        speedups = {mask: self.seen.score(MIXED, mask, FIRST_RULE, self.cost).speedup for mask in exits}
        if not speedups:
            return FIRST_RULE
        best = max(speedups, key=lambda mask: speedups[mask])
        return best_rule([(best, self.seen.traces(MIXED, best))], self.cost)

    def search_one(self, number: int, name: str, rule: DraftRule) -> Trials:
        path = self.work / f"trials-{number:02d}.jsonl"
        digest = digest_of(self.digest, name, rule)
        trials = Trials(path, digest, lambda mask: self.seen.score(name, mask, rule, self.cost))
        with tqdm(desc=f"masks for {name}", delay=2, leave=False, unit="mask") as bar:

            def score(mask: SkipMask) -> float:
                bar.update(mask not in trials.scores)
                return trials.speedup(mask)

            explore(trials, score, self.num_layers, self.budget, self.seed + number)
        best, count = trials.best(1)[0], len(trials.scores)
        log.info("search: %s, best of %d masks %.3f, skips %d", name, count, trials.speedup(best), best.num_skipped)
        return trials

    def best_heldout(self, name: str, masks: Sequence[SkipMask], rule: DraftRule) -> SkipMask:
        scores = {mask: self.heldout.score(name, mask, rule, self.cost).speedup for mask in masks}
        return max(scores, key=lambda mask: scores[mask])

    def choose(self, name: str, finalists: dict[str, SkipMask], rule: DraftRule, num_trials: int) -> Choice:
        own_mask, mixed_mask = finalists[name], finalists[MIXED]
        own, mixed = (self.heldout.score(name, mask, rule, self.cost) for mask in (own_mask, mixed_mask))
        is_own = own.speedup > mixed.speedup
        return Choice(
            name=name,
            mask=MaskRecord.of(own_mask if is_own else mixed_mask),
            score=own if is_own else mixed,
            is_own=is_own,
            own=own,
            mixed=mixed,
            num_trials=num_trials,
        )


def explore(trials: Trials, score: ScoreMask, num_layers: int, budget: int, seed: int) -> None:
    """Simple rules, then hill climbing, then Bayesian optimisation; `budget` bounds the proposals of the last two."""
    for mask in rule_masks(num_layers):
        score(mask)
    climbing = round(CLIMB_SHARE * budget)
    climb(trials.best(1)[0], score, num_layers, climbing, seed)
    for number in range(ROUNDS):
        optimise(trials.speedups, score, num_layers, (budget - climbing) // ROUNDS, seed + number)
