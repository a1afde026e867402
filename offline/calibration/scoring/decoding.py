"""Masks decoded for real: the prompts for it, and an engine whose speed is that of the masks alone.

Used where a speed is measured rather than predicted: by the last stage, by `study`, and by the paper's objective.
"""

from collections.abc import Sequence

from offline.calibration.collect import Collection, Part
from offline.calibration.scoring.replay import DraftRule
from offline.evaluation.measure import Decoding, Job
from offline.loaded_model import LoadedModel
from server.engine import Engine, EngineConfig


def heldout_jobs(collection: Collection, count: int) -> list[Job]:
    """The first `count` held-out prompts of each domain, with seeds that are their numbers."""
    domains = collection.domains.items()
    prompts = [(ids, name) for name, domain in domains for ids in domain.ids(Part.HELDOUT)[:count]]
    return [Job(ids, name, seed) for seed, (ids, name) in enumerate(prompts)]


def mask_decoding(loaded: LoadedModel, prompts: Sequence[list[int]], rule: DraftRule, max_tokens: int) -> Decoding:
    """Answers of up to `max_tokens` tokens to any of these prompts, one at a time.

    The engine drafts at every step and adapts nothing, so a mask is as fast or slow as it is.
    """
    room = max(map(len, prompts)) + max_tokens
    config = EngineConfig(
        1, room, max_draft=rule.max_draft, confidence=rule.confidence, baseline_share=0, is_adaptive=False
    )
    return Decoding(Engine(loaded.model, config), loaded.checkpoint.eos_ids, max_tokens)
