"""The stages of a calibration in order: collect, anchors, search, pack.

Each is a function of the files that the stages before it left; a command runs all stages up to its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from offline.calibration.anchors import place_anchors
from offline.calibration.collect import Collection, collect
from offline.calibration.history import count_histories
from offline.calibration.pack import measure_drafts, pack
from offline.calibration.patching.patches import domain_folder, fit_patches
from offline.calibration.report.report import write_report
from offline.calibration.result import Calibration
from offline.calibration.scoring.continuations import Texts, write_texts
from offline.calibration.scoring.cost import CostModel, measure_cost
from offline.calibration.scoring.drafts import DraftParts
from offline.calibration.search.race import DomainTraces
from offline.calibration.search.search import DomainDrafts, search_domain
from offline.calibration.search.verdicts import judge
from offline.calibration.vocabulary import TokenCounts, count_tokens, rank_tokens
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED, read_prompts
from offline.records import WORK, digest_of, folder_name
from offline.settings import CalibrationSettings


class Stage(StrEnum):
    """The stages by the names of their commands."""

    COLLECT = "collect"
    ANCHORS = "anchors"
    SEARCH = "search"
    PACK = "pack"


@dataclass(frozen=True)
class Done:
    """The end of a run: a message to print, and the finished calibration where the last stage was `pack`."""

    message: str
    calibration: Calibration | None = None


def calibrate(settings: CalibrationSettings, last: Stage = Stage.PACK) -> Done:
    """Runs the stages up to `last`, reusing what is finished."""
    prompts = read_prompts(settings.prompts)
    loaded = LoadedModel.open(settings)
    work = settings.out / WORK
    # 1) prompts -> ids, vectors, domains, parts
    collection = collect(loaded, prompts, settings, work)
    if last is Stage.COLLECT:
        return Done(f"{collection.num_prompts} prompts of {len(collection.domains)} domains in {work}")
    # 2) vectors -> anchors and the similarity threshold
    anchors = place_anchors(collection, settings, work)
    if last is Stage.ANCHORS:
        return Done(f"{len(anchors.rows)} anchors in {work}")
    # 3) the cost of passes, the model's own texts, their tokens and states -> drafts -> verdicts
    cost = measure_cost(loaded, work)
    texts, counted = write_and_count(loaded, collection, settings, work)
    ranked = rank_tokens(loaded, counted)
    fitted = fit_patches(loaded, counted, ranked, settings, work)
    patches = {name: each.patch(domain_folder(work, name)) for name, each in fitted.items()}
    parts = DraftParts(ranked, loaded.model.config.vocabulary_size, patches)
    traces = {name: DomainTraces(loaded.model, parts, each.search) for name, each in texts.items()}
    found = search_drafts(loaded, traces, counted, cost.model, settings, work)
    verdicts = judge(traces, texts, found, cost.model, settings, work)
    if last is Stage.SEARCH:
        return Done(f"{verdicts.num_drafts} drafts for {len(verdicts.domains)} domains in {work}")
    # 4) everything -> the artifact and its report
    measured = measure_drafts(loaded, collection, parts, verdicts, settings, work)
    histories = count_histories(counted, texts)
    artifact = pack(loaded, prompts, collection, anchors, verdicts, measured, parts, histories, settings)
    calibration = Calibration(
        loaded,
        work,
        artifact.manifest,
        collection,
        anchors,
        cost,
        texts,
        counted,
        fitted,
        parts,
        found,
        verdicts,
        measured,
    )
    table = write_report(calibration, settings.out)
    return Done(f"{table}\n\nrouting artifact and report.html written to {settings.out}", calibration)


def write_and_count(
    loaded: LoadedModel, collection: Collection, settings: CalibrationSettings, work: Path
) -> tuple[dict[str, Texts], dict[str, TokenCounts]]:
    """The texts of the domains, and their counted tokens."""
    texts, counted = {}, {}
    for name, domain in collection.domains.items():
        folder = work / folder_name(name)
        texts[name] = write_texts(loaded, domain, settings, folder)
        counted[name] = count_tokens(loaded, domain, texts[name], settings, folder)
    return texts, counted


def search_drafts(
    loaded: LoadedModel,
    traces: Mapping[str, DomainTraces],
    counted: Mapping[str, TokenCounts],
    cost: CostModel,
    settings: CalibrationSettings,
    work: Path,
) -> dict[str, DomainDrafts]:
    """The drafts of the domains and of `mixed`."""
    groups = {name: ([traces[name]], each.digest) for name, each in counted.items()}
    groups[MIXED] = (list(traces.values()), digest_of([each.digest for each in counted.values()]))
    return {
        name: search_domain(loaded, name, domains, digest, cost, settings, domain_folder(work, name))
        for name, (domains, digest) in groups.items()
    }
