"""Drafts decoded for real: the prompts for it, and engines whose speed is that of the drafts alone.

Used where a speed is measured rather than predicted: by the last stage, by `study`, and by the paper's objective.
"""

from collections.abc import Mapping, Sequence

from offline.calibration.collect import Collection, Part
from offline.calibration.scoring.drafts import DraftChoice, DraftRule, Vocabularies
from offline.evaluation.measure import Decoding, Job, Runner
from offline.loaded_model import LoadedModel
from server.engine import Engine, EngineConfig, Route


def heldout_jobs(collection: Collection, count: int) -> list[Job]:
    """The first `count` held-out prompts of each domain, with seeds that are their numbers."""
    domains = collection.domains.items()
    prompts = [(ids, name) for name, domain in domains for ids in domain.ids(Part.HELDOUT)[:count]]
    return [Job(ids, name, seed) for seed, (ids, name) in enumerate(prompts)]


class DraftDecoding:
    """Answers of up to `max_tokens` tokens to any of these prompts, one at a time.

    Engines draft at every step and adapt nothing, so a draft is as fast or slow as it is. Each rule has an
    engine of its own.
    """

    def __init__(
        self, loaded: LoadedModel, vocabularies: Vocabularies, prompts: Sequence[list[int]], max_tokens: int
    ) -> None:
        self.loaded = loaded
        self.vocabularies = vocabularies
        self.room = max(map(len, prompts)) + max_tokens
        self.max_tokens = max_tokens
        self.known: dict[DraftRule, Decoding] = {}

    def by(self, rule: DraftRule) -> Decoding:
        """An engine whose drafts end by this rule."""
        if rule not in self.known:
            config = EngineConfig(
                1, self.room, max_draft=rule.max_draft, confidence=rule.confidence, baseline_share=0, is_adaptive=False
            )
            engine = Engine(self.loaded.model, config)
            self.known[rule] = Decoding(engine, self.loaded.checkpoint.eos_ids, self.max_tokens)
        return self.known[rule]

    def runner(self, method: str, drafts: Mapping[str, tuple[DraftChoice, DraftRule]]) -> Runner:
        """Answers with the draft and the rule of each job's domain."""
        choices = drafts.items()
        routes = {name: Route(name, self.vocabularies.draft_model(choice, rule)) for name, (choice, rule) in choices}
        runners = {name: self.by(rule).runner(method, lambda job: routes[job.domain]) for name, (_, rule) in choices}
        return lambda jobs: [answer for job in jobs for answer in runners[job.domain]([job])]
