"""The stages in order. Each is a function of the files before it; a command runs all up to its own stage."""

from enum import StrEnum

from offline.anchors import place_anchors
from offline.collect import collect
from offline.cost import measure_cost
from offline.pack import pack
from offline.prompts import read_prompts
from offline.report import write_report
from offline.score import write_texts
from offline.search import search_masks
from offline.settings import CalibrationSettings
from offline.workbench import Workbench


class Stage(StrEnum):
    COLLECT = "collect"
    ANCHORS = "anchors"
    SEARCH = "search"
    PACK = "pack"


def calibrate(settings: CalibrationSettings, last: Stage = Stage.PACK) -> str:
    """Runs the stages up to `last`, reusing what is finished; returns what to print."""
    prompts = read_prompts(settings.prompts)
    bench = Workbench.open(settings)
    work = settings.out / "work"
    # 1) prompts -> ids, vectors, domains, parts
    collection = collect(bench, prompts, settings, work)
    if last is Stage.COLLECT:
        return f"{len(collection.prompts)} prompts of {len(collection.domains)} domains in {work}"
    # 2) vectors -> anchors and the similarity threshold
    anchors = place_anchors(collection, settings, work)
    if last is Stage.ANCHORS:
        return f"{len(anchors.rows)} anchors in {work}"
    # 3) the model's own texts and the cost of passes -> masks
    cost = measure_cost(bench, work).model
    texts = write_texts(bench, collection, settings, work)
    found = search_masks(bench, texts, cost, settings, work)
    if last is Stage.SEARCH:
        return f"masks of {len(found.domains)} domains in {work}"
    # 4) everything -> the artifact
    artifact = pack(bench, collection, anchors, found, settings)
    return f"{write_report(artifact, anchors, found, cost, settings.out)}\n\nrouting artifact written to {settings.out}"
