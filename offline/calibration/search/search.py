"""Stage 3, the search: a mask for each domain and one over all of them (`mixed`).

A search scores its starting masks, then what the default strategy proposes. Each domain has a record
of its own that depends on nothing but its own texts, so a new domain leaves the others' as they are.
Beside its mask, a domain gets three more from control searches: they tell what part of a mask is
chance (`verdicts.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.replay import FIRST_RULE, DraftRule, Trace, best_rule
from offline.calibration.scoring.score import MaskScorer, Score, score_traces
from offline.calibration.scoring.wallclock import WallClock
from offline.calibration.search.initial_masks import Depths, cosine_masks, knapsack_masks, prefix_masks, rule_masks
from offline.calibration.search.strategies import STRATEGIES, explore
from offline.calibration.search.trials import Trials
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, Strict, digest_of, log, reused_or_made
from offline.settings import CalibrationSettings, Objective
from server.engine import Decoder, JsonMask, SkipMask

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


class TextGroup:
    """A scorer for each of some groups of texts: one batch of all would be as long as the longest of them."""

    def __init__(self, model: Decoder, groups: Sequence[Sequence[Text]]) -> None:
        self.scorers = [MaskScorer(model, texts) for texts in groups]

    def traces(self, mask: SkipMask) -> list[Trace]:
        return [trace for scorer in self.scorers for trace in scorer.traces(mask)]


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

    def first_rule(self, group: TextGroup) -> DraftRule:
        """The rule that suits the best early exit, to search with."""
        traces = {mask: group.traces(mask) for mask in prefix_masks(self.num_layers)}
        if not traces:
            return FIRST_RULE
        best = max(traces, key=lambda mask: score_traces(traces[mask], mask, FIRST_RULE, self.cost).speedup)
        return best_rule([(best, traces[best])], self.cost)

    def starting_masks(self, texts: Sequence[Text]) -> list[SkipMask]:
        """All starting masks, each once."""
        few = [text.model_copy(update={"output_ids": text.output_ids[:START_TOKENS]}) for text in spread(texts)]
        scorer = MaskScorer(self.loaded.model, few)
        masks = rule_masks(self.num_layers)
        if scorer.texts:
            depths = Depths(scorer.hidden_states, self.num_layers)
            masks += cosine_masks(depths, self.cost) + knapsack_masks(depths, self.cost)
        return list(dict.fromkeys(masks))

    def run(
        self, name: str, texts: Sequence[Text], objective: Callable[[SkipMask], Score], rule: DraftRule, seed: int
    ) -> MaskRun:
        """One search; goes on from its file of trials."""
        path = self.folder / f"trials-{name}.jsonl"
        with tqdm(desc=f"masks for {self.folder.name}, {name}", delay=2, leave=False, unit="mask") as bar:

            def compute(mask: SkipMask) -> Score:
                bar.update()
                return objective(mask)

            trials = Trials(path, digest_of(self.digest, name, rule, seed), compute)
            for mask in self.starting_masks(texts):
                trials.speedup(mask)
            explore(STRATEGIES[STRATEGY], trials, self.num_layers, self.settings.budget, seed)
        return MaskRun(mask=trials.best, curve=[round(value, 4) for value in trials.curve])

    def objective(self, groups: Sequence[Sequence[Text]], rule: DraftRule) -> Callable[[SkipMask], Score]:
        """The function that a search on these texts maximises; predictions are remembered by mask."""
        if self.settings.objective is Objective.WALLCLOCK:
            texts = list(chain.from_iterable(groups))
            return WallClock(self.loaded, texts, rule, self.settings.continuation_tokens)
        group = TextGroup(self.loaded.model, groups)
        return cache(lambda mask: score_traces(group.traces(mask), mask, rule, self.cost))

    def controls(self, own: Callable[[SkipMask], Score], texts: Sequence[Text], rule: DraftRule) -> dict[str, MaskRun]:
        """The same search with another seed, and on either half of the texts where there are two."""
        seed = self.settings.seed
        runs = {OTHER_SEED: self.run(OTHER_SEED, texts, own, rule, seed + 1)}
        if len(texts) > 1:
            for name, half in ((FIRST_HALF, texts[::2]), (SECOND_HALF, texts[1::2])):
                runs[name] = self.run(name, half, self.objective([half], rule), rule, seed)
        return runs


def spread(texts: Sequence[Text]) -> Sequence[Text]:
    """A few texts from all over the list."""
    return texts[:: max(len(texts) // START_TEXTS, 1)][:START_TEXTS]


def search_domain(
    loaded: LoadedModel,
    name: str,
    groups: Sequence[Sequence[Text]],
    digest: str,
    cost: CostModel,
    settings: CalibrationSettings,
    folder: Path,
) -> DomainMasks:
    """Masks for one domain, or for `mixed` over the texts of all, given in `groups` of digest `digest`."""
    chosen = (settings.objective, settings.budget, settings.seed, settings.controls, STRATEGY)
    digest = digest_of(digest, name, cost.model_dump_json(), chosen)
    searcher = Searcher(loaded, cost, settings, folder, digest)

    def make() -> DomainMasks:
        rule = searcher.first_rule(TextGroup(loaded.model, groups))
        texts, objective = list(chain.from_iterable(groups)), searcher.objective(groups, rule)
        own = searcher.run(OWN, texts, objective, rule, settings.seed)
        has_controls = settings.controls and name != MIXED
        controls = searcher.controls(objective, texts, rule) if has_controls else {}
        best = own.mask
        log.info("search: %s, best of %d masks %.3f, skips %d", name, len(own.curve), own.curve[-1], best.num_skipped)
        return DomainMasks(digest=digest, name=name, rule=rule, own=own, controls=controls)

    return reused_or_made(folder / "masks.json", DomainMasks, digest, make)
