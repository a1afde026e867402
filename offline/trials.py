"""Scored masks of one search, appended to a JSONL file as they come, so that an interrupted search goes on.

The first line holds the digest of what the scores depend on; a file with another digest is replaced.
"""

from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from offline.score import Score
from offline.stage import StageRecord, Strict
from server.engine import MaskRecord, SkipMask


class Trial(Strict):
    mask: MaskRecord
    score: Score


class Trials:
    """Scores by mask: remembered, read from the file, or computed and appended."""

    def __init__(self, path: Path, digest: str, compute: Callable[[SkipMask], Score]) -> None:
        self.path = path
        self.compute = compute
        self.recorded = {trial.mask.mask: trial.score for trial in read_trials(path, digest)}
        self.scores: dict[SkipMask, Score] = {}
        header = StageRecord(digest=digest).model_dump_json()
        trials = [Trial(mask=MaskRecord.of(m), score=s).model_dump_json() for m, s in self.recorded.items()]
        # Written anew, which drops the half line that an interruption may have left.
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *trials]) + "\n")

    def speedup(self, mask: SkipMask) -> float:
        if mask not in self.scores:
            self.scores[mask] = self.recorded[mask] if mask in self.recorded else self.add(mask)
        return self.scores[mask].speedup

    def add(self, mask: SkipMask) -> Score:
        score = self.compute(mask)
        with self.path.open("a") as file:
            file.write(Trial(mask=MaskRecord.of(mask), score=score).model_dump_json() + "\n")
        return score

    @property
    def speedups(self) -> dict[SkipMask, float]:
        return {mask: score.speedup for mask, score in self.scores.items()}

    def best(self, count: int) -> list[SkipMask]:
        """The masks of highest score, the earliest first among equals."""
        return sorted(self.scores, key=lambda mask: -self.scores[mask].speedup)[:count]


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
