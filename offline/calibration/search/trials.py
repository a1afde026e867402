"""Scored drafts of one search, appended to a JSONL file as they come, so that an interrupted search goes on.

The first line holds the digest of what the scores depend on; a file with another digest is replaced.
"""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from pydantic import ValidationError

from offline.calibration.scoring.drafts import DraftChoice
from offline.calibration.scoring.score import Score
from offline.calibration.search.race import Objective
from offline.records import StageRecord, Strict, write_atomically
from server.engine import SkipMask


class Trial(Strict):
    """One line of the file: a draft and its score."""

    choice: DraftChoice
    score: Score


class Trials:
    """Scores by draft: remembered, read from the file, or computed and appended.

    Without a file they are only remembered. `speedups` holds what was asked for, in that order. A new draft is scored
    beside the best one so far, which is the same whether or not the search was interrupted.
    """

    def __init__(self, path: Path | None, digest: str, compute: Objective) -> None:
        self.path = path
        self.compute = compute
        self.recorded = {trial.choice: trial.score for trial in read_trials(path, digest)} if path else {}
        self.speedups: dict[DraftChoice, float] = {}
        if path:
            header = StageRecord(digest=digest).model_dump_json()
            trials = [Trial(choice=c, score=s).model_dump_json() for c, s in self.recorded.items()]
            # Written anew, which drops the half line that an interruption may have left.
            write_atomically(path, ("\n".join([header, *trials]) + "\n").encode())

    def speedup(self, choice: DraftChoice) -> float:
        if choice not in self.speedups:
            self.speedups[choice] = (self.recorded.get(choice) or self.add(choice)).speedup
        return self.speedups[choice]

    def add(self, choice: DraftChoice) -> Score:
        score = self.compute(choice, self.best if self.speedups else None)
        if self.path:
            with self.path.open("a") as file:
                file.write(Trial(choice=choice, score=score).model_dump_json() + "\n")
        return score

    @property
    def best(self) -> DraftChoice:
        """The draft of highest score, the earliest among equals."""
        return max(self.speedups.items(), key=lambda item: item[1])[0]

    @property
    def curve(self) -> list[float]:
        """The best score after each scored draft."""
        return list(accumulate(self.speedups.values(), max))


class MaskTrials:
    """The masks of a search, each scored with all of a few drafts' other parts: the best of these scores is its own.

    `speedups` holds the masks in the order in which they were asked for.
    """

    def __init__(self, trials: Trials, bases: Sequence[DraftChoice]) -> None:
        self.trials = trials
        self.bases = bases
        self.speedups: dict[SkipMask, float] = {}

    def speedup(self, mask: SkipMask) -> float:
        if mask not in self.speedups:
            self.speedups[mask] = max(self.trials.speedup(base.with_mask(mask)) for base in self.bases)
        return self.speedups[mask]

    @property
    def best(self) -> float:
        """The best score so far, 0 before the first."""
        return max(self.speedups.values(), default=0.0)


def read_trials(path: Path, digest: str) -> list[Trial]:
    """The whole lines of a trial file of this digest."""
    if not path.exists():
        return []
    lines = path.read_text().split("\n")[:-1]
    try:
        if not lines or StageRecord.model_validate_json(lines[0]).digest != digest:
            return []
        return [Trial.model_validate_json(line) for line in lines[1:]]
    except ValidationError:
        return []
