"""Stage 3, beside the search: how the model's own answers go on, which drafts without a pass follow."""

from collections.abc import Mapping

from torch import Tensor

from offline.calibration.scoring.continuations import Text, Texts
from offline.calibration.vocabulary import TokenCounts
from offline.prompts import MIXED
from server.engine import OTHER_DOMAIN, answer_counts

LEAST_VISITS = 3
"""A context that was seen more rarely is left out: all of them make ten times the bytes, and drafts are no better."""


def count_histories(counted: Mapping[str, TokenCounts], texts: Mapping[str, Texts]) -> dict[str, Tensor]:
    """Entries of each domain's answers, and of all for prompts of none; held-out prompts are left out."""
    answers = {name: pairs([*each.answered, *texts[name].search]) for name, each in counted.items()}
    everything = [pair for each in answers.values() for pair in each]
    histories = {name: answer_counts(name, each, LEAST_VISITS) for name, each in answers.items()}
    histories[MIXED] = answer_counts(OTHER_DOMAIN, everything, LEAST_VISITS)
    return {name: entries for name, entries in histories.items() if len(entries)}


def pairs(texts: list[Text]) -> list[tuple[list[int], list[int]]]:
    return [(text.prompt_ids, text.output_ids) for text in texts]
