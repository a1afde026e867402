"""Drafts decoded for real on held-out prompts: masks beside their predicted scores, and another artifact's drafts."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from offline.calibration.result import Calibration
from offline.calibration.scoring.decoding import DraftDecoding, heldout_jobs
from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.scoring.replay import Trace
from offline.calibration.scoring.score import DraftScorer, score_traces
from offline.calibration.search.initial_masks import flipped
from offline.calibration.search.starting_masks import StartingMasks
from offline.evaluation.measure import Job, Runner, measure
from offline.evaluation.summary import Interval, summarise
from offline.records import StageRecord, digest_of, reused_or_made
from offline.settings import SettingsMistake, StudySettings
from server.engine import PLAIN, RoutingArtifact

LEAST_SPEEDUP = 0.6
"""Slower masks are left out: no search dwells on them, and they would make a correlation look easy."""
MOST_FLIPS = 12
RIVAL = "rival"


class Correlation(StageRecord):
    """Drafts as (predicted, measured) speed-ups on the same held-out prompts, and their rank correlations."""

    points: list[tuple[float, float]]
    spearman: float
    spearman_best_half: float
    """Of the drafts above the median prediction, between which a search has to choose."""


def correlate(done: Calibration, settings: StudySettings) -> Correlation:
    """Predicts the speed of `--masks` masks beside the mixed draft's other parts, measures it on held-out prompts.

    All of them end by the mixed draft's rule.
    """
    verdicts = done.verdicts
    digest = digest_of(verdicts.digest, settings.masks, settings.measure_prompts, settings.repeats)

    def make() -> Correlation:
        count = max(settings.measure_prompts, 1)
        predicted = spread_drafts(done, count, settings)
        jobs = heldout_jobs(done.collection, count)
        prompts = [job.ids for job in jobs]
        decoding = DraftDecoding(done.loaded, prompts, settings.continuation_tokens)

        def runner(method: str, choice: DraftChoice) -> Runner:
            draft = done.parts.draft_model(choice, verdicts.mixed.rule)
            return decoding.runner(method, dict.fromkeys(done.texts, draft))

        runners = {f"draft-{i}": runner("skip", choice) for i, choice in enumerate(predicted)}
        runners[PLAIN] = runner(PLAIN, DraftChoice())
        rates = fastest_rates(runners, jobs, settings.repeats)
        points = [(score, rates[f"draft-{i}"] / rates[PLAIN]) for i, score in enumerate(predicted.values())]
        best_half = sorted(points)[len(points) // 2 :]
        return Correlation(
            digest=digest, points=points, spearman=spearman(points), spearman_best_half=spearman(best_half)
        )

    return reused_or_made(done.work / "study-correlation.json", Correlation, digest, make)


def spearman(points: Sequence[tuple[float, float]]) -> float:
    """Rank correlation; 0 for fewer than three points, or where all are equal."""
    if len(points) < 3 or any(len(set(values)) == 1 for values in zip(*points, strict=True)):
        return 0.0
    return float(spearmanr(*zip(*points, strict=True)).statistic)


def spread_drafts(done: Calibration, count: int, settings: StudySettings) -> dict[DraftChoice, float]:
    """Drafts with their predicted speed-ups, evenly over the ranks of what simple rules and random flips give.

    They are scored on `count` held-out texts of each domain.
    """
    model, parts, cost = done.loaded.model, done.parts, done.cost.model
    scorers = [DraftScorer(model, parts, texts.heldout[:count]) for texts in done.texts.values()]
    places, chance, mixed = range(2 * cost.num_layers), random.Random(settings.seed), done.verdicts.mixed
    searched = [text for texts in done.texts.values() for text in texts.search]
    masks = StartingMasks(model, parts, cost, searched).around([mixed.choice])
    for _ in range(2 * settings.masks):
        flips = chance.sample(places, chance.randint(1, min(MOST_FLIPS, len(places))))
        masks.append(flipped(mixed.choice.mask, flips, cost.num_layers))
    scores = {}
    for mask in tqdm(dict.fromkeys(masks), "predictions", delay=2, leave=False):
        choice = mixed.choice.with_mask(mask)
        traces: list[Trace] = [trace for scorer in scorers for trace in scorer.traces(choice)]
        score = score_traces(traces, choice, mixed.rule, cost).speedup
        if not choice.is_full and score >= LEAST_SPEEDUP:
            scores[choice] = score
    ranked = sorted(scores, key=lambda choice: scores[choice])
    chosen = np.linspace(0, len(ranked) - 1, settings.masks).round().astype(int).tolist() if ranked else []
    return {ranked[place]: scores[ranked[place]] for place in chosen}


def fastest_rates(runners: Mapping[str, Runner], jobs: Sequence[Job], repeats: int) -> dict[str, float]:
    """Tokens per second over all prompts, of each prompt the fastest turn: what else runs only ever adds time."""
    fastest: dict[tuple[str, int], tuple[float, int]] = {}
    for sample in measure(runners, [[job] for job in jobs], repeats):
        key, found = (sample.method, sample.job.seed), (sample.seconds, len(sample.answer.ids))
        fastest[key] = min(fastest.get(key, found), found)
    totals = {name: [fastest[name, job.seed] for job in jobs] for name in runners}
    return {name: sum(n for _, n in found) / sum(s for s, _ in found) for name, found in totals.items()}


def compare_rival(done: Calibration, settings: StudySettings, folder: Path) -> dict[str, Interval]:
    """Decodes held-out prompts with this artifact's drafts and with another's, in turn."""
    rival = RoutingArtifact.load(folder)
    done.loaded.check(rival, folder)
    if rival.manifest.has_low_bit_drafts and done.loaded.model.low_bit is None:
        raise SettingsMistake(f"--rival: {folder} needs --draft-weights {rival.manifest.draft_weights}")
    theirs = {record.name: rival.draft_model(record) for record in rival.manifest.domains}
    missing = [name for name in done.texts if name not in theirs]
    if missing:
        raise SettingsMistake(f"--rival: {folder} has no domain {missing[0]!r}, only {', '.join(theirs)}")
    ours = {each.name: done.parts.draft_model(each.choice, each.rule) for each in done.verdicts.domains}
    jobs = heldout_jobs(done.collection, max(settings.measure_prompts, 1))
    decoding = DraftDecoding(done.loaded, [job.ids for job in jobs], settings.continuation_tokens)
    # Ratios are taken to what is called plain: here, this artifact.
    runners = {PLAIN: decoding.runner("skip", ours), RIVAL: decoding.runner("skip", theirs)}
    rows = summarise(measure(runners, [[job] for job in jobs], settings.repeats), settings.seed)
    return {row.domain: row.speedup for row in rows if row.method == RIVAL}
