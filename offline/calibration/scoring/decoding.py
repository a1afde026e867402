"""Drafts decoded for real: the prompts for it, and engines whose speed is that of the drafts alone.

Used where a speed is measured rather than predicted: by the last stage, by `study`, and by the paper's objective.
"""

from collections.abc import Mapping, Sequence

from offline.calibration.collect import Collection, Part
from offline.evaluation.measure import Decoding, Job, Runner
from offline.loaded_model import LoadedModel
from server.engine import DraftModel, Engine, EngineConfig, Route, SamplingParams


def heldout_jobs(collection: Collection, count: int) -> list[Job]:
    """The first `count` held-out prompts of each domain, with seeds that are their numbers."""
    domains = collection.domains.items()
    prompts = [(ids, name) for name, domain in domains for ids in domain.ids(Part.HELDOUT)[:count]]
    return [Job(ids, name, seed) for seed, (ids, name) in enumerate(prompts)]


class DraftDecoding:
    """Answers of up to `max_tokens` tokens to any of these prompts, one at a time.

    The engine drafts at every step and adapts nothing, so a draft is as fast or slow as it is.
    """

    def __init__(self, loaded: LoadedModel, prompts: Sequence[list[int]], max_tokens: int) -> None:
        config = EngineConfig(
            1, max(map(len, prompts)) + max_tokens, baseline_share=0, is_adaptive=False, reuses_prefixes=False
        )
        self.engine = Engine(loaded.model, config)
        self.decoding = Decoding(self.engine, loaded.checkpoint.eos_ids, max_tokens, SamplingParams())

    def runner(self, method: str, drafts: Mapping[str, DraftModel]) -> Runner:
        """Answers with the draft of each job's domain."""
        routes = {name: Route(name, draft) for name, draft in drafts.items()}
        return self.decoding.runner(method, lambda job: routes[job.domain])
