"""Prompts -> batches of jobs, in the order in which all methods answer them."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby

from offline.evaluation.measure import Job
from offline.loaded_model import LoadedModel
from offline.prompts import PromptError
from offline.records import log
from offline.settings import EvaluationSettings


def usable_jobs(
    loaded: LoadedModel, encoded: Sequence[tuple[list[int], str]], settings: EvaluationSettings
) -> list[Job]:
    """A job per prompt that fits the context with its answer; each with a seed of its own."""
    limit = loaded.model.config.max_length - settings.max_new_tokens
    jobs = [Job(ids, domain, settings.seed + i) for i, (ids, domain) in enumerate(encoded) if len(ids) <= limit]
    if len(jobs) < len(encoded):
        log.info("%d prompts of more than %d tokens dropped", len(encoded) - len(jobs), limit)
    if not jobs:
        raise PromptError(f"no prompt is within {limit} tokens, the model's context less --max-new-tokens")
    return jobs


def stream(jobs: Sequence[Job], mix_ratio: float, seed: int) -> list[Job]:
    """The order of the prompts: the next is of another domain with chance `mix_ratio`, else of the same."""
    waiting: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        waiting[job.domain].append(job)
    chance = random.Random(seed)
    current, order = jobs[0].domain, []
    while waiting:
        others = [domain for domain in waiting if domain != current]
        if current not in waiting or (others and chance.random() < mix_ratio):
            current = chance.choice(others) if mix_ratio else others[0]
        order.append(waiting[current].pop(0))
        if not waiting[current]:
            del waiting[current]
    return order


def batched(order: Sequence[Job], settings: EvaluationSettings) -> Iterator[list[Job]]:
    """Batches of the prompts in order; each is of one domain, unless `--mix-ratio` mixes domains on purpose."""
    for _, group in groupby(order, key=lambda job: None if settings.mix_ratio else job.domain):
        members = list(group)
        for first in range(0, len(members), settings.batch_size):
            yield members[first : first + settings.batch_size]
