"""Stage 3, between texts and search: the tokens of a domain, commonest first, of which drafts score a part.

They are counted in anchor and search prompts and in the model's own answers to them; held-out prompts are left
out. An answer's token counts more than a prompt's: drafts follow answers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from offline.calibration.collect import DomainPrompts, Part
from offline.calibration.scoring.continuations import GREEDY, Text, Texts, make_texts
from offline.loaded_model import LoadedModel
from offline.prompts import MIXED
from offline.records import StageRecord, digest_of, reused_or_made
from offline.settings import CalibrationSettings
from server.engine import SamplingParams

ANSWER_WEIGHT = 3
"""Prompt tokens that an answer's token counts as much as."""
DRAWN_ANSWERS = 2
DRAWN_TEMPERATURE = 0.8
"""Beside the greedy answer to an anchor prompt, so many are drawn: patches need more places than vocabularies."""


class TokenCounts(StageRecord):
    """A domain's tokens with their weighted counts, commonest first; `answered` are its anchor prompts.

    The answers to one prompt stand together.
    """

    answered: list[Text]
    counts: list[tuple[int, int]]

    @property
    def shares(self) -> dict[int, float]:
        """By token, its share of all counts."""
        total = sum(count for _, count in self.counts)
        return {token: count / total for token, count in self.counts}


def count_tokens(
    loaded: LoadedModel, domain: DomainPrompts, texts: Texts, settings: CalibrationSettings, folder: Path
) -> TokenCounts:
    """The counted tokens of a domain, read from its folder where they are finished."""
    digest = digest_of(texts.digest, ANSWER_WEIGHT, DRAWN_ANSWERS, DRAWN_TEMPERATURE)

    def make() -> TokenCounts:
        samplings = [SamplingParams(DRAWN_TEMPERATURE, seed=settings.seed + i) for i in range(DRAWN_ANSWERS)]
        prompts, length = domain.ids(Part.ANCHOR), settings.continuation_tokens
        rounds = [make_texts(loaded, prompts, length, sampling) for sampling in (GREEDY, *samplings)]
        answered = [answer for answers in zip(*rounds, strict=True) for answer in answers]
        counts = weighted_counts([*answered, *texts.search])
        return TokenCounts(digest=digest, answered=answered, counts=[(t, counts[t]) for t in ranked(counts)])

    return reused_or_made(folder / "vocabulary.json", TokenCounts, digest, make)


def weighted_counts(texts: Iterable[Text]) -> Counter[int]:
    """Counts of the tokens of prompts, and `ANSWER_WEIGHT` times those of answers."""
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(text.prompt_ids)
        for token in text.output_ids:
            counts[token] += ANSWER_WEIGHT
    return counts


def ranked(weights: Mapping[int, float], first: Iterable[int] = ()) -> list[int]:
    """Tokens from the largest weight to the smallest, equals by their ids; those of `first` before all others."""
    ahead = sorted(set(first))
    return ahead + sorted(weights.keys() - set(ahead), key=lambda token: (-weights[token], token))


def rank_tokens(loaded: LoadedModel, counted: Mapping[str, TokenCounts]) -> dict[str, list[int]]:
    """The tokens of all domains, commonest first, and of `mixed`, in which each domain counts as much as another.

    The tokens that end an answer come first in each: a draft that cannot choose them never ends.
    """
    shares = {name: counts.shares for name, counts in counted.items()}
    mean: dict[int, float] = {}
    for domain in shares.values():
        for token, share in domain.items():
            mean[token] = mean.get(token, 0.0) + share / len(shares)
    size = loaded.model.config.vocabulary_size
    ends = [token for token in loaded.checkpoint.eos_ids if 0 <= token < size]
    return {name: ranked(each, ends) for name, each in (shares | {MIXED: mean}).items()}
