"""The paper's own objective: tokens per second of decoding the search prompts, timed.

Noisy and slow, and kept for comparison: two runs of it disagree, and what else the machine does is
part of the score.
"""

import time
from collections.abc import Sequence

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.decoding import DraftDecoding
from offline.calibration.scoring.drafts import DraftChoice, DraftParts
from offline.calibration.scoring.replay import FIRST_RULE
from offline.calibration.scoring.score import Score
from offline.loaded_model import LoadedModel
from server.engine import PLAIN, GenerationRequest, Route, SamplingParams, StopConditions


class WallClock:
    """Scores a draft by decoding with it, by one rule for all; a score of 1 is the speed of plain decoding."""

    def __init__(self, loaded: LoadedModel, parts: DraftParts, texts: Sequence[Text], max_tokens: int) -> None:
        self.parts = parts
        self.prompts = [text.prompt_ids for text in texts]
        self.engine = DraftDecoding(loaded, self.prompts, max_tokens).engine
        self.stop = StopConditions(max_tokens, loaded.checkpoint.eos_ids)
        self.decode(PLAIN, DraftChoice())
        self.plain_rate, _ = self.decode(PLAIN, DraftChoice())

    def __call__(self, choice: DraftChoice) -> Score:
        rate, acceptance = self.decode("skip", choice)
        return Score(speedup=rate / self.plain_rate, acceptance=acceptance)

    def decode(self, method: str, choice: DraftChoice) -> tuple[float, float]:
        """(tokens per second, accepted of drafted tokens) over all prompts."""
        route = Route("search", self.parts.draft_model(choice, FIRST_RULE))
        num_tokens, num_drafted, num_accepted = 0, 0, 0
        started = time.perf_counter()
        for ids in self.prompts:
            request = GenerationRequest(ids, SamplingParams(), self.stop, method, route)
            (sequence,) = self.engine.generate([request])
            num_tokens += len(sequence.output_ids)
            num_drafted += sequence.stats.num_drafted
            num_accepted += sequence.stats.num_accepted
        return num_tokens / (time.perf_counter() - started), num_accepted / max(num_drafted, 1)
