"""Costs and vocabularies that the tests of scores, searches and verdicts share."""

from offline.calibration.scoring.cost import LONGEST_DRAFT, CostModel, PassCost
from offline.calibration.scoring.drafts import DraftParts
from offline.prompts import MIXED

VOCABULARY_SIZE = 262
COST = CostModel(
    num_layers=4,
    vocabulary_size=VOCABULARY_SIZE,
    own=PassCost(base=0.5, head=0.5, attention=1.0, mlp=1.0, patch=0.5),
    low_bit=PassCost(base=0.25, head=0.25, attention=0.5, mlp=0.5, patch=0.25),
    full=[9.0] * (LONGEST_DRAFT + 1),
)
RANKED = {name: list(range(start, start + 120)) for name, start in {"a": 0, "b": 40, MIXED: 20}.items()}


def vocabularies() -> DraftParts:
    """Of two domains and of both, each with 120 counted tokens."""
    return DraftParts(RANKED, VOCABULARY_SIZE)
