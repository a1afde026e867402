"""Times methods side by side: every prompt is answered by each method in turn, in a shuffled order.

So a slow moment of the machine meets all methods alike, and ratios within one turn are fair.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from offline.loaded_model import LoadedModel
from offline.settings import EvaluationSettings
from server.engine import Engine, GenerationRequest, Method, Route, SamplingParams, SequenceStats, StopConditions

PLAIN = "plain"
SETTLING_SECONDS = 0.02
"""Threads of the method before go on spinning for some milliseconds; no other should pay for that."""


@dataclass(frozen=True)
class Job:
    """One prompt to answer; `seed` is its own, and tells the prompts of a run apart."""

    ids: list[int]
    domain: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """What a method wrote; the rest where it is one of the engine's.

    `decode_seconds` leave out prefills; those of a batch are shared out by tokens.
    """

    ids: list[int]
    decode_seconds: float | None = None
    stats: SequenceStats | None = None
    route: Route | None = None


Runner = Callable[[Sequence[Job]], list[Answer]]


@dataclass(frozen=True)
class Sample:
    """One prompt, answered once; the seconds of a batch are shared out by tokens."""

    method: str
    repeat: int
    job: Job
    answer: Answer
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second; in a batch, of the whole batch."""
        return len(self.answer.ids) / self.seconds

    @property
    def decode_rate(self) -> float | None:
        """Tokens after the first per second of decoding; None where that is unknown or there is none."""
        seconds, num_tokens = self.answer.decode_seconds, len(self.answer.ids) - 1
        return num_tokens / seconds if seconds and num_tokens else None


@dataclass(frozen=True)
class Decoding:
    """An engine with the limits that all of its methods share."""

    engine: Engine
    eos_ids: frozenset[int]
    max_tokens: int
    temperature: float = 0.0

    def runner(self, method: Method, route_of: Callable[[Job], Route | None]) -> Runner:
        """Answers by this method; `route_of` forces a route, None leaves it to the engine's router."""
        stop = StopConditions(self.max_tokens, self.eos_ids)

        def run(jobs: Sequence[Job]) -> list[Answer]:
            requests = [
                GenerationRequest(job.ids, SamplingParams(self.temperature, seed=job.seed), stop, method, route_of(job))
                for job in jobs
            ]
            sequences = [self.engine.add(request) for request in requests]
            seconds = 0.0
            while self.engine.has_work:
                seconds += self.engine.step()[1].decode_seconds
            share = seconds / max(sum(len(s.output_ids) - 1 for s in sequences), 1)
            return [Answer(s.output_ids, share * (len(s.output_ids) - 1), s.stats, s.route) for s in sequences]

        return run


def end_ids(loaded: LoadedModel, settings: EvaluationSettings) -> frozenset[int]:
    """The tokens that end an answer: the model's own, or none where its end is to be written past."""
    return frozenset() if settings.ignore_eos else loaded.checkpoint.eos_ids


def measure(runners: Mapping[str, Runner], batches: Sequence[Sequence[Job]], repeats: int) -> list[Sample]:
    """Samples of all runners on all batches; each runner is warmed up on the first batch before.

    The order is shuffled anew in each turn: in a rotation, every method would always follow the same other one.
    """
    for runner in runners.values():
        runner(batches[0])
    names, chance = list(runners), random.Random(0)
    samples = []
    turns = [(repeat, number) for repeat in range(repeats) for number in range(len(batches))]
    for repeat, number in tqdm(turns, "prompts", delay=2, leave=False):
        chance.shuffle(names)
        for name in names:
            jobs = batches[number]
            time.sleep(SETTLING_SECONDS)
            started = time.perf_counter()
            answers = runners[name](jobs)
            seconds = time.perf_counter() - started
            total = sum(len(answer.ids) for answer in answers)
            for job, answer in zip(jobs, answers, strict=True):
                samples.append(Sample(name, repeat, job, answer, seconds * len(answer.ids) / total))
    return samples
