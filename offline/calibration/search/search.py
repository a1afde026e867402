"""Stage 3, the search: a draft for each domain and one over all of them (`mixed`).

A search compares weights and vocabularies of drafts that skip nothing, and the domain's patch over each vocabulary.
It looks for masks around the best two that keep all layers, and compares the vocabularies once more. Each domain has
a record of its own that depends on nothing but its own texts, so a new domain leaves the others' as they are.
Beside its draft, a domain gets three more from control searches: they tell what part of a draft is chance
(`verdicts.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.drafts import SIZES, DraftChoice, DraftParts
from offline.calibration.scoring.score import Score
from offline.calibration.scoring.wallclock import WallClock
from offline.calibration.search.race import HALVES, HEAT_TEXTS, MARGIN, DomainTraces, Objective, Race
from offline.calibration.search.starting_masks import StartingMasks
from offline.calibration.search.strategies import STRATEGIES, explore
from offline.calibration.search.trials import MaskTrials, Trials
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings, ObjectiveName

STRATEGY = "evolution"
"""The best of the strategies at this budget by `study`; see LOG.md."""
NUM_BASES = 2
"""Drafts whose weights and vocabularies masks are tried with."""
HOPE, FIRST_MASKS = 0.9, 12
"""Where none of the first masks, or of all that it begins with, gains by what it skips or is so near to the best draft,
it tries no more: six searches of 350 masks found none better than among their first six (LOG.md, 29 November)."""
OWN, OTHER_SEED, FIRST_HALF, SECOND_HALF = "own", "other-seed", "first-half", "second-half"


class DraftRun(Strict):
    """One search: its best draft, and the best score after each scored draft."""

    choice: DraftChoice
    curve: list[float]


class DomainDrafts(StageRecord):
    """The draft of a domain's `own` search, and those of its control searches by their names.

    The mixed draft has no controls.
    """

    name: str
    own: DraftRun
    controls: dict[str, DraftRun]


@dataclass(frozen=True)
class Searcher:
    """The searches of one domain or of `mixed`, with the inputs that they share."""

    loaded: LoadedModel
    parts: DraftParts
    cost: CostModel
    settings: CalibrationSettings
    name: str
    folder: Path
    digest: str

    @property
    def num_layers(self) -> int:
        return self.loaded.model.config.num_layers

    def whole_drafts(self) -> list[DraftChoice]:
        """Drafts that skip nothing: the model itself, then all weights with all vocabularies."""
        weights = (False, True) if self.loaded.model.low_bit else (False,)
        vocabularies = self.parts.vocabularies(self.name)
        return [DraftChoice(vocabulary=each, is_low_bit=is_low_bit) for is_low_bit in weights for each in vocabularies]

    def patched_drafts(self) -> list[DraftChoice]:
        if self.name not in self.parts.patches:
            return []
        return [DraftChoice(patch_of=self.name, vocabulary=each) for each in self.parts.vocabularies(self.name)]

    def run(self, control: str, starts: StartingMasks, objective: Objective, seed: int) -> DraftRun:
        """One search; goes on from its file of trials."""
        path = self.folder / f"trials-{control}.jsonl"
        with tqdm(desc=f"drafts for {self.folder.name}, {control}", delay=2, leave=False, unit="draft") as bar:

            def compute(choice: DraftChoice, leader: DraftChoice | None) -> Score:
                bar.update()
                return objective(choice, leader)

            trials = Trials(path, digest_of(self.digest, control, seed), compute)
            self.search(trials, starts, seed)
        return DraftRun(choice=trials.best, curve=[round(value, 4) for value in trials.curve])

    def search(self, trials: Trials, starts: StartingMasks, seed: int) -> None:
        # 1) weights and vocabularies, nothing skipped
        wholes = self.whole_drafts()
        for choice in wholes:
            trials.speedup(choice)
        # 2) the patch, which stands for all layers, over the same vocabularies
        for choice in self.patched_drafts():
            trials.speedup(choice)
        # 3) masks with the parts of the best two whole ones, which they would run with
        bases = sorted(wholes, key=lambda choice: -trials.speedups[choice])[:NUM_BASES]
        masks = MaskTrials(trials, bases)
        whole = trials.speedups[bases[0]]
        for number, mask in enumerate(starts.around(bases)):
            if number == FIRST_MASKS and not is_hopeful(masks, whole):
                break
            masks.speedup(mask)
        if is_hopeful(masks, whole):
            explore(STRATEGIES[STRATEGY], masks, self.num_layers, self.settings.budget, seed)
        # 4) the vocabularies of the best one
        best = trials.best
        for vocabulary in self.parts.vocabularies(self.name):
            trials.speedup(best.with_vocabulary(vocabulary))

    def objective(self, domains: Sequence[DomainTraces], halves: tuple[int, ...] = HALVES) -> Objective:
        """The function that a search on these texts maximises."""
        if self.settings.objective is ObjectiveName.WALLCLOCK:
            texts = [text for domain in domains for half in halves for text in domain.texts[half::2]]
            timed = WallClock(self.loaded, self.parts, texts, self.settings.continuation_tokens)
            return lambda choice, leader: timed(choice)
        return Race(domains, self.cost, halves)

    def controls(self, own: Objective, domain: DomainTraces, starts: StartingMasks) -> dict[str, DraftRun]:
        """The same search with another seed, and on either half of the texts where there are two."""
        seed = self.settings.seed
        runs = {OTHER_SEED: self.run(OTHER_SEED, starts, own, seed + 1)}
        if len(domain.texts) > 1:
            for half, name in enumerate((FIRST_HALF, SECOND_HALF)):
                runs[name] = self.run(name, starts, self.objective([domain], (half,)), seed)
        return runs


def is_hopeful(masks: MaskTrials, whole: float) -> bool:
    """Whether the best mask beats skipping nothing, and is near enough to the best draft for others to overtake it."""
    return masks.best > whole and masks.best >= HOPE * masks.trials.speedups[masks.trials.best]


def search_domain(
    loaded: LoadedModel,
    name: str,
    domains: Sequence[DomainTraces],
    digest: str,
    cost: CostModel,
    settings: CalibrationSettings,
    folder: Path,
) -> DomainDrafts:
    """Drafts for one domain, or for `mixed` over the texts of all; `digest` is that of their counted tokens."""
    chosen = (settings.objective, settings.budget, settings.seed, settings.controls)
    digest = digest_of(
        digest, name, cost.model_dump_json(), chosen, STRATEGY, HEAT_TEXTS, MARGIN, SIZES, NUM_BASES, HOPE, FIRST_MASKS
    )
    parts = domains[0].parts
    searcher = Searcher(loaded, parts, cost, settings, name, folder, digest)

    def make() -> DomainDrafts:
        texts = [text for domain in domains for text in domain.texts]
        starts = StartingMasks(loaded.model, parts, cost, texts)
        objective = searcher.objective(domains)
        own = searcher.run(OWN, starts, objective, settings.seed)
        has_controls = settings.controls and name != MIXED
        controls = searcher.controls(objective, domains[0], starts) if has_controls else {}
        for domain in domains:
            domain.release()
        log.info("search: %s, best of %d drafts %.3f: %s", name, len(own.curve), own.curve[-1], own.choice)
        return DomainDrafts(digest=digest, name=name, own=own, controls=controls)

    return reused_or_made(folder / "drafts.json", DomainDrafts, digest, make)
