"""Scored masks of one search, appended to a JSONL file as they come, so that an interrupted search goes on.

The first line holds the digest of what the scores depend on; a file with another digest is replaced.
"""

from itertools import accumulate
from pathlib import Path

from pydantic import ValidationError

from offline.calibration.scoring.score import Score
from offline.calibration.search.race import Objective
from offline.records import StageRecord, Strict, write_atomically
from server.engine import JsonMask, SkipMask


class Trial(Strict):
    """One line of the file: a mask and its score."""

    mask: JsonMask
    score: Score


class Trials:
    """Scores by mask: remembered, read from the file, or computed and appended.

    Without a file they are only remembered. `speedups` holds what was asked for, in that order. A new mask is scored
    beside the best one so far, which is the same whether or not the search was interrupted.
    """

    def __init__(self, path: Path | None, digest: str, compute: Objective) -> None:
        self.path = path
        self.compute = compute
        self.recorded = {trial.mask: trial.score for trial in read_trials(path, digest)} if path else {}
        self.speedups: dict[SkipMask, float] = {}
        if path:
            header = StageRecord(digest=digest).model_dump_json()
            trials = [Trial(mask=m, score=s).model_dump_json() for m, s in self.recorded.items()]
            # Written anew, which drops the half line that an interruption may have left.
            write_atomically(path, ("\n".join([header, *trials]) + "\n").encode())

    def speedup(self, mask: SkipMask) -> float:
        if mask not in self.speedups:
            self.speedups[mask] = (self.recorded.get(mask) or self.add(mask)).speedup
        return self.speedups[mask]

    def add(self, mask: SkipMask) -> Score:
        score = self.compute(mask, self.best if self.speedups else None)
        if self.path:
            with self.path.open("a") as file:
                file.write(Trial(mask=mask, score=score).model_dump_json() + "\n")
        return score

    @property
    def best(self) -> SkipMask:
        """The mask of highest score, the earliest among equals."""
        return max(self.speedups, key=lambda mask: self.speedups[mask])

    @property
    def curve(self) -> list[float]:
        """The best score after each scored mask."""
        return list(accumulate(self.speedups.values(), max))


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
