"""Stage 3, the search: a mask for each domain and one over all of them (`mixed`).

A search scores its starting masks, then what the default strategy proposes. Each domain has a record
of its own that depends on nothing but its own texts, so a new domain leaves the others' as they are.
Beside its mask, a domain gets three more from control searches: they tell what part of a mask is
chance (`verdicts.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.replay import FIRST_RULE, DraftRule, best_rule
from offline.calibration.scoring.score import MaskScorer, Score
from offline.calibration.scoring.wallclock import WallClock
from offline.calibration.search.initial_masks import Depths, cosine_masks, knapsack_masks, prefix_masks, rule_masks
from offline.calibration.search.race import FIRST_HEAT, HALVES, HEAT_TEXTS, MARGIN, DomainTraces, Objective, Race
from offline.calibration.search.strategies import STRATEGIES, explore
from offline.calibration.search.trials import Trials
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings, ObjectiveName
from server.engine import JsonMask, SkipMask

STRATEGY = "evolution"
"""The best of the strategies at this budget by `study`; see LOG.md."""
START_TEXTS = 4
START_TOKENS = 17
"""Texts and tokens that the starting masks are made from: similarities need fewer than scores."""
OWN, OTHER_SEED, FIRST_HALF, SECOND_HALF = "own", "other-seed", "first-half", "second-half"


class MaskRun(Strict):
    """One search: its best mask, and the best score after each scored mask."""

    mask: JsonMask
    curve: list[float]


class DomainMasks(StageRecord):
    """The mask of a domain's `own` search, and those of its control searches by their names.

    The mixed mask has no controls. `rule` is the drafting rule that all of them were scored with.
    """

    name: str
    rule: DraftRule
    own: MaskRun
    controls: dict[str, MaskRun]


@dataclass(frozen=True)
class Searcher:
    """One domain's searches, with the inputs that they share."""

    loaded: LoadedModel
    cost: CostModel
    settings: CalibrationSettings
    folder: Path
    digest: str

    @property
    def num_layers(self) -> int:
        return self.loaded.model.config.num_layers

    def first_rule(self, domains: Sequence[DomainTraces]) -> DraftRule:
        """The rule that suits the best early exit of the first heat, to search with."""
        race = Race(domains, FIRST_RULE, self.cost)
        masks = prefix_masks(self.num_layers)
        if not masks:
            return FIRST_RULE
        best = max(masks, key=lambda mask: race.score(mask, FIRST_HEAT).speedup)
        return best_rule([(best, race.traces(best, FIRST_HEAT))], self.cost)

    def starting_masks(self, texts: Sequence[Text]) -> list[SkipMask]:
        """All starting masks, each once."""
        few = [text.model_copy(update={"output_ids": text.output_ids[:START_TOKENS]}) for text in spread(texts)]
        scorer = MaskScorer(self.loaded.model, few)
        masks = rule_masks(self.num_layers)
        if scorer.texts:
            depths = Depths(scorer.hidden_states, self.num_layers)
            masks += cosine_masks(depths, self.cost) + knapsack_masks(depths, self.cost)
        return list(dict.fromkeys(masks))

    def run(self, name: str, starts: Sequence[SkipMask], objective: Objective, rule: DraftRule, seed: int) -> MaskRun:
        """One search; goes on from its file of trials."""
        path = self.folder / f"trials-{name}.jsonl"
        with tqdm(desc=f"masks for {self.folder.name}, {name}", delay=2, leave=False, unit="mask") as bar:

            def compute(mask: SkipMask, leader: SkipMask | None) -> Score:
                bar.update()
                return objective(mask, leader)

            trials = Trials(path, digest_of(self.digest, name, rule, seed), compute)
            for mask in starts:
                trials.speedup(mask)
            explore(STRATEGIES[STRATEGY], trials, self.num_layers, self.settings.budget, seed)
        return MaskRun(mask=trials.best, curve=[round(value, 4) for value in trials.curve])

    def objective(
        self, domains: Sequence[DomainTraces], rule: DraftRule, halves: tuple[int, ...] = HALVES
    ) -> Objective:
        """The function that a search on these texts maximises."""
        if self.settings.objective is ObjectiveName.WALLCLOCK:
            texts = [text for domain in domains for half in halves for text in domain.texts[half::2]]
            timed = WallClock(self.loaded, texts, rule, self.settings.continuation_tokens)
            return lambda mask, leader: timed(mask)
        return Race(domains, rule, self.cost, halves)

    def controls(
        self, own: Objective, domain: DomainTraces, starts: Sequence[SkipMask], rule: DraftRule
    ) -> dict[str, MaskRun]:
        """The same search with another seed, and on either half of the texts where there are two."""
        seed = self.settings.seed
        runs = {OTHER_SEED: self.run(OTHER_SEED, starts, own, rule, seed + 1)}
        if len(domain.texts) > 1:
            for half, name in enumerate((FIRST_HALF, SECOND_HALF)):
                runs[name] = self.run(name, starts, self.objective([domain], rule, (half,)), rule, seed)
        return runs


def spread(texts: Sequence[Text]) -> Sequence[Text]:
    """A few texts from all over the list."""
    return texts[:: max(len(texts) // START_TEXTS, 1)][:START_TEXTS]


def search_domain(
    loaded: LoadedModel,
    name: str,
    domains: Sequence[DomainTraces],
    digest: str,
    cost: CostModel,
    settings: CalibrationSettings,
    folder: Path,
) -> DomainMasks:
    """Masks for one domain, or for `mixed` over the texts of all, whose texts have the digest `digest`."""
    chosen = (settings.objective, settings.budget, settings.seed, settings.controls, STRATEGY, HEAT_TEXTS, MARGIN)
    digest = digest_of(digest, name, cost.model_dump_json(), chosen)
    searcher = Searcher(loaded, cost, settings, folder, digest)

    def make() -> DomainMasks:
        rule = searcher.first_rule(domains)
        starts = searcher.starting_masks([text for domain in domains for text in domain.texts])
        objective = searcher.objective(domains, rule)
        own = searcher.run(OWN, starts, objective, rule, settings.seed)
        has_controls = settings.controls and name != MIXED
        controls = searcher.controls(objective, domains[0], starts, rule) if has_controls else {}
        for domain in domains:
            domain.release()
        skipped = own.mask.num_skipped
        log.info("search: %s, best of %d masks %.3f, skips %d", name, len(own.curve), own.curve[-1], skipped)
        return DomainMasks(digest=digest, name=name, rule=rule, own=own, controls=controls)

    return reused_or_made(folder / "masks.json", DomainMasks, digest, make)
