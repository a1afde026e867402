"""The masks that the searches of a domain begin with: by rules, and by similarities on some of its texts."""

from collections.abc import Sequence

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.drafts import DraftChoice, DraftParts
from offline.calibration.scoring.score import DraftScorer
from offline.calibration.search.initial_masks import Depths, cosine_masks, knapsack_masks, place_seconds, rule_masks
from server.engine import Decoder, SkipMask

START_TEXTS = 4
START_TOKENS = 17
"""Texts and tokens that they are made from: similarities need fewer than scores."""


class StartingMasks:
    """Made once for each kind of weights: passes of the copy are near to other states, and cost other times."""

    def __init__(self, model: Decoder, parts: DraftParts, cost: CostModel, texts: Sequence[Text]) -> None:
        self.num_layers = model.config.num_layers
        self.cost = cost
        few = [text.model_copy(update={"output_ids": text.output_ids[:START_TOKENS]}) for text in spread(texts)]
        self.scorer = DraftScorer(model, parts, few)
        self.known: dict[bool, list[SkipMask]] = {}

    def around(self, bases: Sequence[DraftChoice]) -> list[SkipMask]:
        """All masks to start from for drafts with these weights, each once; first those that skip little."""
        masks = [mask for base in bases for mask in self.similar(base.is_low_bit)]
        return list(dict.fromkeys(masks + rule_masks(self.num_layers)))

    def similar(self, is_low_bit: bool) -> list[SkipMask]:
        """Masks whose states stay near to those of the whole pass with the same weights."""
        if not self.scorer.texts:
            return []
        if is_low_bit not in self.known:
            whole, seconds = DraftChoice(is_low_bit=is_low_bit), place_seconds(self.cost, is_low_bit)
            depths = Depths(lambda mask: self.scorer.hidden_states(whole.with_mask(mask)), self.num_layers)
            self.known[is_low_bit] = cosine_masks(depths, seconds) + knapsack_masks(depths, seconds)
        return self.known[is_low_bit]


def spread(texts: Sequence[Text]) -> Sequence[Text]:
    """A few texts from all over the list."""
    return texts[:: max(len(texts) // START_TEXTS, 1)][:START_TEXTS]
