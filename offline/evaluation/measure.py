"""Times methods side by side: every prompt is answered by each method in turn, in a shuffled order.

So a slow moment of the machine meets all methods alike, and ratios within one turn are fair.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tqdm import tqdm

from offline.loaded_model import LoadedModel
from offline.settings import EvaluationSettings
from server.engine import Engine, GenerationRequest, Route, SamplingParams, SequenceStats, StopConditions

SETTLING_SECONDS = 0.02
"""Pause before an answer is timed: the threads of the method before spin on for some milliseconds."""


@dataclass(frozen=True)
class Job:
    """One prompt to answer; `seed` is its own, and tells the prompts of a run apart."""

    ids: list[int]
    domain: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """The token ids that a method wrote; `stats` and `route` where it is one of the engine's methods.

    `decode_seconds` leave out the prefill, and are None where the method does not tell them. Those of a
    batch are divided among its answers in proportion to their tokens.
    """

    ids: list[int]
    decode_seconds: float | None = None
    stats: SequenceStats | None = None
    route: Route | None = None


Runner = Callable[[Sequence[Job]], list[Answer]]
"""One method: answers a batch of jobs, in their order."""


@dataclass(frozen=True)
class Sample:
    """One prompt, answered once by one method; the seconds of a batch are divided in proportion to tokens."""

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
    """An engine, with the limits of its answers that hold for every method."""

    engine: Engine
    eos_ids: frozenset[int]
    max_tokens: int
    sampling: SamplingParams
    """How each is drawn, with the seed of its prompt."""

    def runner(self, method: str, route_of: Callable[[Job], Route | None]) -> Runner:
        """Answers by this method; `route_of` forces a route, None leaves it to the engine's router."""
        stop = StopConditions(self.max_tokens, self.eos_ids)

        def run(jobs: Sequence[Job]) -> list[Answer]:
            requests = [
                GenerationRequest(job.ids, replace(self.sampling, seed=job.seed), stop, method, route_of(job))
                for job in jobs
            ]
            sequences = [self.engine.add(request) for request in requests]
            seconds = 0.0
            with self.engine.at_work():
                while self.engine.has_work:
                    seconds += self.engine.step()[1].decode_seconds
            share = seconds / max(sum(len(s.output_ids) - 1 for s in sequences), 1)
            return [Answer(s.output_ids, share * (len(s.output_ids) - 1), s.stats, s.route) for s in sequences]

        return run


def model_sampling(loaded: LoadedModel, settings: EvaluationSettings) -> SamplingParams:
    """At this temperature, with the cuts that the server takes where a client names none: those of the model."""
    return replace(loaded.checkpoint.sampling, temperature=settings.temperature)


def end_ids(loaded: LoadedModel, settings: EvaluationSettings) -> frozenset[int]:
    """The tokens that end an answer: the model's own, or none where its end is to be written past."""
    return frozenset() if settings.ignore_eos else loaded.checkpoint.eos_ids


def measure(
    runners: Mapping[str, Runner], batches: Sequence[Sequence[Job]], repeats: int, first: int = 0
) -> list[Sample]:
    """Times every runner on every batch from `first` on, `repeats` times, after batch 0 has warmed it up.

    The order is shuffled anew in each turn: in a rotation, every method would always follow the same other one.
    """
    for runner in runners.values():
        runner(batches[0])
    names, chance = list(runners), random.Random(0)
    samples = []
    turns = [(repeat, number) for repeat in range(repeats) for number in range(first, len(batches))]
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
