"""Stage 4: anchors and masks -> the routing artifact, with speed-ups measured by decoding held-out prompts."""

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from offline.anchors import Anchors
from offline.collect import Collection, Part
from offline.measure import PLAIN, Decoding, Job, measure
from offline.search import MIXED, Choice, SearchResult
from offline.settings import CalibrationSettings
from offline.summary import MEAN, summarise
from offline.workbench import Workbench
from server.engine import (
    DomainRecord,
    Engine,
    EngineConfig,
    Manifest,
    Method,
    Route,
    RoutingArtifact,
)

PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "bayesian-optimization", "hnswlib")
MEASURED_TOKENS = 64
MEASURED_REPEATS = 3


def versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def pack(
    bench: Workbench, collection: Collection, anchors: Anchors, found: SearchResult, settings: CalibrationSettings
) -> RoutingArtifact:
    """Measures the chosen masks on held-out prompts, saves the artifact in `settings.out`, and returns it."""
    measured = measure_domains(bench, collection, found, settings) if settings.measure_prompts else {}
    counts = {name: sum(p.domain == name for p in collection.prompts) for name in collection.domains}

    def record(choice: Choice) -> DomainRecord:
        return DomainRecord(
            name=choice.name,
            mask=choice.mask,
            num_prompts=counts.get(choice.name, len(collection.prompts)),
            acceptance=choice.score.acceptance,
            predicted_speedup=choice.score.speedup,
            measured_speedup=measured.get(choice.name),
        )

    config = bench.model.config
    manifest = Manifest(
        model_fingerprint=bench.checkpoint.fingerprint,
        model_name=Path(bench.checkpoint.name).name,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        dtype=bench.dtype,
        chat_template_hash=bench.codec.template_hash,
        domains=[record(choice) for choice in found.domains],
        mixed=record(found.mixed),
        anchor_domains=anchors.domains,
        similarity_threshold=anchors.similarity_threshold,
        max_draft=found.rule.max_draft,
        confidence=found.rule.confidence,
        seed=settings.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
    )
    artifact = RoutingArtifact(manifest, anchors.tensor, anchors.centre)
    artifact.save(settings.out)
    return artifact


def measure_domains(
    bench: Workbench, collection: Collection, found: SearchResult, settings: CalibrationSettings
) -> dict[str, float]:
    """Median speed-up over plain decoding by domain, and for `mixed` the mean over domains under the mixed mask."""
    masks = {choice.name: choice.mask.mask for choice in found.domains}
    prompts = [
        (ids, name)
        for name in collection.domains
        for ids in collection.ids(name, Part.HELDOUT)[: settings.measure_prompts]
    ]
    jobs = [Job(ids, name, seed) for seed, (ids, name) in enumerate(prompts)]
    room = max(len(job.ids) for job in jobs) + MEASURED_TOKENS
    rule = found.rule
    config = EngineConfig(
        1, room, max_draft=rule.max_draft, confidence=rule.confidence, baseline_share=0, is_adaptive=False
    )
    engine = Engine(bench.model, config)
    decoding = Decoding(engine, bench.checkpoint.eos_ids, MEASURED_TOKENS)
    pooled = Route(MIXED, found.mixed.mask.mask)
    runners = {
        PLAIN: decoding.runner(Method.PLAIN, lambda job: pooled),
        "own": decoding.runner(Method.SKIP, lambda job: Route(job.domain, masks[job.domain])),
        MIXED: decoding.runner(Method.SKIP, lambda job: pooled),
    }
    rows = summarise(measure(runners, [[job] for job in jobs], repeats=MEASURED_REPEATS), settings.seed)
    measured = {row.domain: row.speedup.median for row in rows if row.method == "own" and row.domain != MEAN}
    measured[MIXED] = next(row.speedup.median for row in rows if (row.method, row.domain) == (MIXED, MEAN))
    return measured
