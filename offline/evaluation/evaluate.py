"""The `evaluate` command: methods side by side on the same prompts, as a table and one JSON object.

Speed counts everything from the prompt to the last token: prefill, routing, drafts, checks. The
column `decode` leaves the prompt out: it compares the time for each token after the first.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from offline.evaluation.batches import batched, stream, usable_jobs
from offline.evaluation.measure import Decoding, Job, Runner, Sample, end_ids, measure, model_sampling
from offline.evaluation.methods import ANOTHER, Candidate, MethodSettings
from offline.evaluation.peers.base import PEERS, peer_runners, runnable
from offline.evaluation.summary import ResultRow, summarise
from offline.loaded_model import LoadedModel
from offline.prompts import read_prompts
from offline.records import Strict, log, versions
from offline.settings import SettingsMistake
from server.engine import Engine, EngineConfig, Route, RoutingArtifact, public_name

ROUTED = ("skip", "knn", "cascade")
"""Methods in which a prompt's own vector picks its mask."""
UNLABELLED = "all"
"""The domain of prompts whose file names none."""


class Evaluation(Strict):
    """The JSON object that the command prints in its last line, of the format `knnssd-evaluate/1`."""

    format: str = "knnssd-evaluate/1"
    model: str
    device: str
    dtype: str
    seed: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int
    max_new_tokens: int
    ignore_eos: bool
    learn: bool
    versions: dict[str, str]
    routing_accuracy: float | None
    results: list[ResultRow]


@dataclass(frozen=True)
class Bench:
    """What all temperatures are measured with: the model, its artifact, and batches of prompts in their order."""

    loaded: LoadedModel
    artifact: RoutingArtifact | None
    batches: list[list[Job]]

    @classmethod
    def of(cls, settings: MethodSettings) -> Self:
        """Loads the model; raises one of the errors that `main` turns into a line."""
        needing = [name for name in settings.methods if Candidate.of(name).needs_artifact]
        folder = settings.artifact_folder
        if needing and folder is None:
            raise SettingsMistake(
                f"--artifact: {needing[0]} needs a routing artifact; `knn-ssd-offline calibrate` makes one"
            )
        prompts = read_prompts(settings.prompts)
        artifact = RoutingArtifact.load(folder) if folder else None
        loaded = LoadedModel.open(settings)
        check_draft_weights(loaded, artifact, settings)
        if artifact is not None and folder is not None:
            loaded.check(artifact, folder)
        if settings.limit is not None:
            prompts = prompts.limited(settings.limit, settings.seed)
        jobs = usable_jobs(loaded, [(loaded.encode(p), p.domain or UNLABELLED) for p in prompts.prompts], settings)
        batches = list(batched(stream(jobs, settings.mix_ratio, settings.seed), settings))
        if settings.learn and len(batches) < 2:
            raise SettingsMistake("--learn: needs two batches of prompts at least; the first only warms up")
        return cls(loaded, artifact, batches)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(job.ids) for batch in self.batches for job in batch)


def evaluate(settings: MethodSettings) -> Iterator[Evaluation]:
    """Runs the command: an evaluation for each temperature, over a model that is loaded once.

    Raises one of the errors that `main` turns into a line.
    """
    bench = Bench.of(settings)
    for run in settings.runs:
        yield evaluate_on(bench, run)


def evaluate_on(bench: Bench, settings: MethodSettings) -> Evaluation:
    """At the temperature of `settings`; every method has an engine of its own, which has learned nothing yet."""
    loaded, artifact, batches = bench.loaded, bench.artifact, bench.batches
    runners = make_runners(loaded, artifact, settings, bench.longest)
    for name in [name for name in runners if name in PEERS and PEERS[name].is_tried]:
        if not runnable(name, runners[name], batches[0], log.warning):
            del runners[name]
    samples = measure(runners, batches, settings.repeats, first=int(settings.learn))
    inexact = frozenset(PEERS) if settings.temperature > 0 else frozenset()
    drawn = model_sampling(loaded, settings)
    return Evaluation(
        model=settings.model or public_name(None),
        device=torch.cuda.get_device_name() if loaded.checkpoint.device.type == "cuda" else "cpu",
        dtype=loaded.dtype,
        seed=settings.seed,
        temperature=settings.temperature,
        top_p=drawn.top_p,
        top_k=drawn.top_k,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        ignore_eos=settings.ignore_eos,
        learn=settings.learn,
        versions=versions(),
        routing_accuracy=routing_accuracy(samples, artifact),
        results=summarise(sorted(samples, key=lambda s: list(runners).index(s.method)), settings.seed, inexact),
    )


def check_draft_weights(loaded: LoadedModel, artifact: RoutingArtifact | None, settings: MethodSettings) -> None:
    """Refuses methods that would draft nothing, and be measured as plain decoding."""
    if loaded.model.low_bit is not None:
        return
    if needing := [name for name in settings.methods if Candidate.of(name).needs_draft_weights]:
        raise SettingsMistake(f"--draft-weights: {needing[0]} needs a copy of the model; use --draft-weights int4")
    needing = [name for name in settings.methods if Candidate.of(name).needs_artifact]
    if needing and artifact and artifact.manifest.has_low_bit_drafts:
        raise SettingsMistake(
            f"--draft-weights: drafts of {needing[0]} are those of the copy that the artifact was calibrated with; "
            f"use --draft-weights {artifact.manifest.draft_weights}"
        )


def make_runners(
    loaded: LoadedModel, artifact: RoutingArtifact | None, settings: MethodSettings, longest: int
) -> dict[str, Runner]:
    """The runners of the methods, in the order asked for."""
    length = longest + settings.max_new_tokens
    history_bytes = EngineConfig.history_bytes if settings.learn else 0
    config = EngineConfig(
        max_batch=settings.batch_size,
        max_length=length,
        history_bytes=history_bytes,
        reuses_prefixes=False,
    )

    def decoding(max_tree: int) -> Decoding:
        # An engine learns what drafts gain, so every method has one of its own.
        engine = Engine(loaded.model, replace(config, max_tree=max_tree), artifact)
        return Decoding(engine, end_ids(loaded, settings), settings.max_new_tokens, model_sampling(loaded, settings))

    own = {name: Candidate.of(name) for name in settings.methods if name not in PEERS}
    runners = {name: decoding(each.tree).runner(each.method, route_of(each, artifact)) for name, each in own.items()}
    runners |= peer_runners(settings.methods, loaded, settings, longest)
    return {name: runners[name] for name in settings.methods}


def route_of(candidate: Candidate, artifact: RoutingArtifact | None) -> Callable[[Job], Route | None]:
    """The route that a candidate forces on each prompt; raises `SettingsMistake` for an unknown domain."""
    if candidate.domain is None or artifact is None:
        return lambda job: None
    library = {each.name: Route(each.name, artifact.draft_model(each)) for each in artifact.manifest.domains}
    known = [*library, ANOTHER] if len(library) > 1 else library
    if candidate.domain not in known:
        raise SettingsMistake(f"--methods: the artifact has no domain {candidate.domain!r}, only {', '.join(known)}")
    if candidate.domain == ANOTHER:
        return lambda job: random.Random(job.seed).choice([r for name, r in library.items() if name != job.domain])
    forced = library[candidate.domain]
    return lambda job: forced


def routing_accuracy(samples: Sequence[Sample], artifact: RoutingArtifact | None) -> float | None:
    """Share of prompts of the artifact's domains that its router sent there; None where nothing was routed."""
    known = {record.name for record in artifact.manifest.domains} if artifact else set()
    right = [
        sample.answer.route.domain == sample.job.domain
        for sample in samples
        if sample.method in ROUTED and sample.answer.route is not None and sample.job.domain in known
    ]
    return sum(right) / len(right) if right else None
