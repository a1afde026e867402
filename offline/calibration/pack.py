"""Stage 4: anchors and drafts -> the routing artifact, with speed-ups measured by decoding held-out prompts."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from offline.calibration.anchors import Anchors
from offline.calibration.collect import Collection
from offline.calibration.scoring.decoding import DraftDecoding, heldout_jobs
from offline.calibration.scoring.drafts import DraftChoice, DraftParts
from offline.calibration.search.verdicts import Verdict, Verdicts
from offline.evaluation.measure import measure
from offline.evaluation.summary import MEAN, Interval, summarise
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED, PromptSet
from offline.records import StageRecord, digest_of, log, reused_or_made, versions
from offline.settings import CalibrationSettings
from server.engine import PLAIN, DomainRecord, DraftRecord, Manifest, Patch, PatchRecord, RoutingArtifact

PLACES = frozenset({"model", "prompts", "out", "trust_remote_code"})
"""Settings that say where things are rather than what is done."""
MEASURED_TOKENS = 64
MEASURED_REPEATS = 3
LEAST_TRUE = 0.8
"""Share of the predicted speeds that drafts have to reach: prompts, which they leave out, cost some of it."""


class Measured(StageRecord):
    """Measured speed-ups over plain decoding by domain, and for `mixed` the mean over domains."""

    speedups: dict[str, Interval]


def measure_drafts(
    loaded: LoadedModel,
    collection: Collection,
    parts: DraftParts,
    verdicts: Verdicts,
    settings: CalibrationSettings,
    work: Path,
) -> Measured:
    """The measured speed-ups of the verdicts' drafts; none where `--measure-prompts` is 0."""
    digest = digest_of(verdicts.digest, settings.measure_prompts, settings.seed)

    def make() -> Measured:
        if not settings.measure_prompts:
            return Measured(digest=digest, speedups={})
        return Measured(digest=digest, speedups=decode_heldout(loaded, collection, parts, verdicts, settings))

    measured = reused_or_made(work / "measured.json", Measured, digest, make)
    if warning := disbelief(verdicts, measured):
        log.warning("%s: delete %s and run the command again while nothing else runs", warning, work / "cost.json")
    return measured


def disbelief(verdicts: Verdicts, measured: Measured) -> str | None:
    """What speaks against the costs that all was predicted by, if something does."""
    found = [
        (each.score.speedup, measured.speedups[each.name].median)
        for each in verdicts.all
        if each.name in measured.speedups
    ]
    if not found:
        return None
    predicted, decoded = (sum(column) / len(found) for column in zip(*found, strict=True))
    if decoded >= LEAST_TRUE * predicted:
        return None
    return f"drafts are predicted at {predicted:.2f} of plain decoding, and decoded at {decoded:.2f}"


def decode_heldout(
    loaded: LoadedModel,
    collection: Collection,
    parts: DraftParts,
    verdicts: Verdicts,
    settings: CalibrationSettings,
) -> dict[str, Interval]:
    """Decodes some held-out prompts plainly, with their domain's draft and with the mixed one, in turn.

    A domain is left out where both drafts are the model itself: without drafts there is nothing to measure.
    """
    own = {each.name: parts.draft_model(each.choice, each.rule) for each in verdicts.domains}
    mixed = dict.fromkeys(own, parts.draft_model(verdicts.mixed.choice, verdicts.mixed.rule))
    drafting = {name for name in own if not (own[name].is_full and mixed[name].is_full)}
    jobs = [job for job in heldout_jobs(collection, settings.measure_prompts) if job.domain in drafting]
    if not jobs:
        return {}
    decoding = DraftDecoding(loaded, [job.ids for job in jobs], MEASURED_TOKENS)
    runners = {
        PLAIN: decoding.runner(PLAIN, mixed),
        "own": decoding.runner("skip", own),
        MIXED: decoding.runner("skip", mixed),
    }
    rows = summarise(measure(runners, [[job] for job in jobs], repeats=MEASURED_REPEATS), settings.seed)
    measured = {row.domain: row.speedup for row in rows if row.method == "own" and row.domain != MEAN}
    measured[MIXED] = next(row.speedup for row in rows if (row.method, row.domain) == (MIXED, MEAN))
    return measured


def pack(
    loaded: LoadedModel,
    prompts: PromptSet,
    collection: Collection,
    anchors: Anchors,
    verdicts: Verdicts,
    measured: Measured,
    parts: DraftParts,
    histories: dict[str, Tensor],
    settings: CalibrationSettings,
) -> RoutingArtifact:
    """Saves the artifact in `settings.out` and returns it."""
    config = loaded.model.config
    manifest = Manifest(
        model_fingerprint=loaded.checkpoint.fingerprint,
        model_name=Path(loaded.checkpoint.name).name,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        dtype=loaded.dtype,
        chat_template_hash=loaded.codec.template_hash,
        draft_weights=draft_weights(loaded, settings),
        domains=[
            record(each, len(collection.domains[each.name].prompts), measured, parts, histories, threshold)
            for each, threshold in zip(verdicts.domains, anchors.thresholds, strict=True)
        ],
        mixed=record(verdicts.mixed, collection.num_prompts, measured, parts, histories),
        anchor_domains=anchors.domains,
        similarity_threshold=min(anchors.thresholds),
        false_reject_rate=anchors.false_reject_rate,
        false_accept_rate=anchors.false_accept_rate,
        seed=settings.seed,
        settings=settings.model_dump(mode="json", include=set(CalibrationSettings.model_fields) - PLACES),
        prompts_digest=prompts.digest,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
    tensors = chosen_tokens(verdicts, parts), chosen_patches(verdicts, parts)
    artifact = RoutingArtifact(manifest, anchors.tensor, anchors.centre, *tensors, histories)
    artifact.save(settings.out)
    return artifact


def chosen_tokens(verdicts: Verdicts, parts: DraftParts) -> dict[str, Tensor]:
    """The token ids of each draft that has a vocabulary, by the domain that it was searched for."""
    chosen = {each.draft_of: each.choice.vocabulary for each in verdicts.all if each.choice.vocabulary}
    return {name: torch.tensor(parts.vocabulary(each).token_ids) for name, each in chosen.items()}


def chosen_patches(verdicts: Verdicts, parts: DraftParts) -> dict[str, Patch]:
    """The patch of each draft that has one, by the domain that it was fitted for."""
    return {each.draft_of: parts.patches[each.choice.patch_of] for each in verdicts.all if each.choice.patch_of}


def patch_record(choice: DraftChoice, parts: DraftParts) -> PatchRecord | None:
    if choice.patch_of is None:
        return None
    patch = parts.patches[choice.patch_of]
    return PatchRecord(start=patch.start, rank=patch.rank)


def draft_weights(loaded: LoadedModel, settings: CalibrationSettings) -> Literal["none", "int8", "int4"]:
    """The copy that the model has; of what is asked for, `auto` may have made none, and else makes one of 4 bits."""
    if loaded.model.low_bit is None:
        return "none"
    return "int4" if settings.draft_weights == "auto" else settings.draft_weights


def record(
    verdict: Verdict,
    num_prompts: int,
    measured: Measured,
    parts: DraftParts,
    histories: dict[str, Tensor],
    threshold: float | None = None,
) -> DomainRecord:
    """A verdict in the form that the artifact keeps; prompts of a domain are as similar as its `threshold`."""
    found, choice = measured.speedups.get(verdict.name), verdict.choice
    draft = DraftRecord(
        mask=choice.mask,
        vocabulary_size=choice.vocabulary.size if choice.vocabulary else None,
        patch=patch_record(choice, parts),
        is_low_bit=choice.is_low_bit,
        max_draft=verdict.rule.max_draft,
        confidence=verdict.rule.confidence,
        floor=verdict.rule.floor,
    )
    return DomainRecord(
        name=verdict.name,
        draft=draft,
        num_prompts=num_prompts,
        acceptance=verdict.score.acceptance,
        predicted_speedup=verdict.score.speedup,
        measured_speedup=found.median if found else None,
        draft_of=verdict.draft_of,
        similarity_threshold=threshold,
        history_size=len(histories[verdict.name]) if verdict.name in histories else None,
    )
