"""Stage 3, first part: the full model answers the search and held-out prompts of a domain.

Masks are scored on these answers, because drafts will have to agree with them.
"""

from pathlib import Path

from offline.calibration.collect import DomainPrompts, Part
from offline.loaded_model import LoadedModel
from offline.records import StageRecord, Strict, digest_of, reused_or_made
from offline.settings import CalibrationSettings
from server.engine import PLAIN, Engine, EngineConfig, GenerationRequest, SamplingParams, StopConditions

WRITERS = 16
"""Prompts that are answered at once."""
GREEDY = SamplingParams()


class Text(Strict):
    """A prompt and what the full model greedily answers."""

    prompt_ids: list[int]
    output_ids: list[int]


class Texts(StageRecord):
    """The texts of a domain: to search with, and to judge by what the search found."""

    search: list[Text]
    heldout: list[Text]


def write_texts(loaded: LoadedModel, domain: DomainPrompts, settings: CalibrationSettings, folder: Path) -> Texts:
    """The texts of a domain, read from its folder where they are finished."""
    length = settings.continuation_tokens
    digest = digest_of(domain.digest, length)

    def make() -> Texts:
        search, heldout = (make_texts(loaded, domain.ids(part), length) for part in (Part.SEARCH, Part.HELDOUT))
        return Texts(digest=digest, search=search, heldout=heldout)

    return reused_or_made(folder / "texts.json", Texts, digest, make)


def make_texts(
    loaded: LoadedModel, prompts: list[list[int]], length: int, sampling: SamplingParams = GREEDY
) -> list[Text]:
    """The model's answers of at most `length` tokens."""
    longest = max(map(len, prompts)) + length
    engine = Engine(loaded.model, EngineConfig(max_batch=WRITERS, max_length=longest, method=PLAIN))
    stop = StopConditions(length, loaded.checkpoint.eos_ids)
    sequences = engine.generate([GenerationRequest(ids, sampling, stop) for ids in prompts])
    return [Text(prompt_ids=s.request.prompt_ids, output_ids=s.output_ids) for s in sequences]
