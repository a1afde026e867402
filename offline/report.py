"""A readable account of a calibration: what was chosen for each domain, and against what."""

from pathlib import Path

from offline.anchors import Anchors
from offline.cost import CostModel
from offline.search import Choice, SearchResult
from offline.stage import write_atomically
from server.engine import DomainRecord, RoutingArtifact

HEAD = ["domain", "mask", "skipped", "draft cost", "acceptance", "predicted", "mixed predicts", "measured"]


def write_report(artifact: RoutingArtifact, anchors: Anchors, found: SearchResult, cost: CostModel, out: Path) -> str:
    """Writes `report.md` beside the artifact; returns its table."""
    manifest = artifact.manifest
    choices = zip([*found.domains, found.mixed], [*manifest.domains, manifest.mixed], strict=True)
    rows = [HEAD, ["---"] * len(HEAD), *(report_row(choice, record, cost) for choice, record in choices)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    text = (
        f"# Calibration of {manifest.model_name}\n\n{table}\n\n"
        "Speed-ups are over plain decoding, on held-out prompts; `predicted` is by the score, `measured` by decoding.\n"
        "`mask` says whether a domain has its own mask or, where that did not beat it, the mixed one.\n\n"
        f"Drafts: at most {found.rule.max_draft} tokens, confidence {found.rule.confidence}. "
        f"Routing: {anchors.routing_accuracy:.1%} of prompts that placed no anchor are nearest to their own domain, "
        f"similarity threshold {anchors.similarity_threshold:.3f}.\n"
    )
    write_atomically(out / "report.md", text.encode())
    return table


def report_row(choice: Choice, record: DomainRecord, cost: CostModel) -> list[str]:
    mask = choice.mask.mask
    return [
        choice.name,
        "own" if choice.is_own else "mixed",
        f"{mask.num_skipped} of {2 * cost.num_layers}",
        f"{cost.draft(mask) / cost.plain:.2f}",
        f"{choice.score.acceptance:.2f}",
        f"{choice.score.speedup:.2f}",
        f"{choice.mixed.speedup:.2f}",
        "-" if record.measured_speedup is None else f"{record.measured_speedup:.2f}",
    ]
