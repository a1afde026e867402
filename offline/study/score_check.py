"""Masks decoded for real on held-out prompts: beside their predicted scores, and beside another artifact's masks."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from tqdm import tqdm

from offline.calibration.result import Calibration
from offline.calibration.scoring.decoding import heldout_jobs, mask_decoding
from offline.calibration.scoring.replay import Trace
from offline.calibration.scoring.score import MaskScorer, score_traces
from offline.calibration.search.initial_masks import flipped
from offline.calibration.search.search import Searcher
from offline.evaluation.measure import Job, Runner, measure
from offline.evaluation.summary import Interval, summarise
from offline.prompts import MIXED
from offline.records import StageRecord, digest_of, reused_or_made
from offline.settings import SettingsMistake, StudySettings
from server.engine import FULL_MODEL, PLAIN, DraftModel, Route, RoutingArtifact, SkipMask

LEAST_SPEEDUP = 0.6
"""Slower masks are left out: no search dwells on them, and they would make a correlation look easy."""
MOST_FLIPS = 12
RIVAL = "rival"


class Correlation(StageRecord):
    """Masks as (predicted, measured) speed-ups on the same held-out prompts, and their rank correlations."""

    points: list[tuple[float, float]]
    spearman: float
    spearman_best_half: float
    """Of the masks above the median prediction, between which a search has to choose."""


def correlate(done: Calibration, settings: StudySettings) -> Correlation:
    """Predicts the speed of `--masks` masks, measures it on held-out prompts, and compares the two rankings."""
    verdicts = done.verdicts
    digest = digest_of(verdicts.digest, settings.masks, settings.measure_prompts, settings.repeats)

    def make() -> Correlation:
        count = max(settings.measure_prompts, 1)
        scorers = [MaskScorer(done.loaded.model, texts.heldout[:count]) for texts in done.texts.values()]
        predicted = spread_masks(done, scorers, settings)
        jobs = heldout_jobs(done.collection, count)
        prompts = [job.ids for job in jobs]
        decoding = mask_decoding(done.loaded, prompts, verdicts.rule, settings.continuation_tokens)
        routes = {f"mask-{i}": Route(MIXED, done.loaded.draft_model(mask)) for i, mask in enumerate(predicted)}
        runners = {name: decoding.runner("skip", always(route)) for name, route in routes.items()}
        runners[PLAIN] = decoding.runner(PLAIN, lambda job: Route(MIXED, FULL_MODEL))
        rates = fastest_rates(runners, jobs, settings.repeats)
        points = [(score, rates[f"mask-{i}"] / rates[PLAIN]) for i, score in enumerate(predicted.values())]
        best_half = sorted(points)[len(points) // 2 :]
        return Correlation(
            digest=digest, points=points, spearman=spearman(points), spearman_best_half=spearman(best_half)
        )

    return reused_or_made(done.work / "study-correlation.json", Correlation, digest, make)


def always(route: Route) -> Callable[[Job], Route]:
    return lambda job: route


def spearman(points: Sequence[tuple[float, float]]) -> float:
    """Rank correlation; 0 for fewer than three points, or where all are equal."""
    if len(points) < 3 or any(len(set(values)) == 1 for values in zip(*points, strict=True)):
        return 0.0
    return float(spearmanr(*zip(*points, strict=True)).statistic)


def spread_masks(done: Calibration, scorers: Sequence[MaskScorer], settings: StudySettings) -> dict[SkipMask, float]:
    """Masks with their predicted speed-ups, evenly over the ranks of what simple rules and random flips give."""
    num_layers = done.loaded.model.config.num_layers
    chance, centre = random.Random(settings.seed), done.verdicts.mixed.mask
    searcher = Searcher(done.loaded, done.cost.model, settings, done.work, "")
    masks = searcher.starting_masks([text for texts in done.texts.values() for text in texts.search])
    for _ in range(2 * settings.masks):
        count = chance.randint(1, min(MOST_FLIPS, 2 * num_layers))
        masks.append(flipped(centre, chance.sample(range(2 * num_layers), count), num_layers))
    scores = {}
    for mask in tqdm(dict.fromkeys(masks), "predictions", delay=2, leave=False):
        traces: list[Trace] = [trace for scorer in scorers for trace in scorer.traces(mask)]
        score = score_traces(traces, mask, done.verdicts.rule, done.cost.model).speedup
        if not mask.is_empty and score >= LEAST_SPEEDUP:
            scores[mask] = score
    ranked = sorted(scores, key=lambda mask: scores[mask])
    places = np.linspace(0, len(ranked) - 1, settings.masks).round().astype(int).tolist() if ranked else []
    return {ranked[place]: scores[ranked[place]] for place in places}


def fastest_rates(runners: Mapping[str, Runner], jobs: Sequence[Job], repeats: int) -> dict[str, float]:
    """Tokens per second over all prompts, of each prompt the fastest turn: what else runs only ever adds time."""
    fastest: dict[tuple[str, int], tuple[float, int]] = {}
    for sample in measure(runners, [[job] for job in jobs], repeats):
        key, found = (sample.method, sample.job.seed), (sample.seconds, len(sample.answer.ids))
        fastest[key] = min(fastest.get(key, found), found)
    totals = {name: [fastest[name, job.seed] for job in jobs] for name in runners}
    return {name: sum(n for _, n in found) / sum(s for s, _ in found) for name, found in totals.items()}


def compare_rival(done: Calibration, settings: StudySettings, folder: Path) -> dict[str, Interval]:
    """Decodes held-out prompts with this artifact's masks and with another's, in turn."""
    rival = RoutingArtifact.load(folder)
    checkpoint = done.loaded.checkpoint
    known = checkpoint.fingerprint, done.loaded.codec.template_hash
    rival.check_model(*known, folder, checkpoint.config.vocabulary_size)
    if rival.manifest.has_low_bit_drafts and done.loaded.model.low_bit is None:
        raise SettingsMistake(f"--rival: {folder} needs --draft-weights {rival.manifest.draft_weights}")
    theirs = {record.name: rival.draft_model(record) for record in rival.manifest.domains}
    missing = [name for name in done.texts if name not in theirs]
    if missing:
        raise SettingsMistake(f"--rival: {folder} has no domain {missing[0]!r}, only {', '.join(theirs)}")
    ours = {verdict.name: done.loaded.draft_model(verdict.mask) for verdict in done.verdicts.domains}
    jobs = heldout_jobs(done.collection, max(settings.measure_prompts, 1))
    prompts = [job.ids for job in jobs]
    decoding = mask_decoding(done.loaded, prompts, done.verdicts.rule, settings.continuation_tokens)

    def runner(drafts: Mapping[str, DraftModel]) -> Runner:
        return decoding.runner("skip", lambda job: Route(job.domain, drafts[job.domain]))

    # Ratios are taken to what is called plain: here, this artifact.
    runners = {PLAIN: runner(ours), RIVAL: runner(theirs)}
    rows = summarise(measure(runners, [[job] for job in jobs], settings.repeats), settings.seed)
    return {row.domain: row.speedup for row in rows if row.method == RIVAL}
