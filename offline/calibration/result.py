"""A finished calibration in memory: what the report shows and the study goes on with."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offline.calibration.anchors import Anchors
from offline.calibration.collect import Collection
from offline.calibration.pack import Measured
from offline.calibration.patching.patches import FittedPatch
from offline.calibration.scoring.continuations import Texts
from offline.calibration.scoring.cost import MeasuredCost
from offline.calibration.scoring.drafts import DraftParts
from offline.calibration.search.search import DomainDrafts
from offline.calibration.search.verdicts import Verdicts
from offline.calibration.vocabulary import TokenCounts
from offline.loaded_model import LoadedModel
from server.engine import Manifest


@dataclass(frozen=True)
class Calibration:
    """The records of all stages, the model that they are of, and the folder `work` where they are kept.

    `texts` and `counted` are by domain; `fitted` and `found` hold patches and drafts of each domain and the mixed one.
    """

    loaded: LoadedModel
    work: Path
    manifest: Manifest
    collection: Collection
    anchors: Anchors
    cost: MeasuredCost
    texts: Mapping[str, Texts]
    counted: Mapping[str, TokenCounts]
    fitted: Mapping[str, FittedPatch]
    parts: DraftParts
    found: Mapping[str, DomainDrafts]
    verdicts: Verdicts
    measured: Measured
