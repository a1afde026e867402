"""The paper's own objective: tokens per second of decoding the search prompts, timed.

Noisy and slow, and kept for comparison: two runs of it disagree, and what else the machine does is
part of the score.
"""

import time
from collections.abc import Sequence

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.decoding import mask_decoding
from offline.calibration.scoring.replay import DraftRule
from offline.calibration.scoring.score import Score
from offline.loaded_model import LoadedModel
from server.engine import (
    EMPTY_MASK,
    PLAIN,
    GenerationRequest,
    Route,
    SamplingParams,
    SkipMask,
    StopConditions,
)


class WallClock:
    """Scores a mask by decoding with it; a score of 1 is the speed of plain decoding."""

    def __init__(self, loaded: LoadedModel, texts: Sequence[Text], rule: DraftRule, max_tokens: int) -> None:
        self.loaded = loaded
        self.prompts = [text.prompt_ids for text in texts]
        self.engine = mask_decoding(loaded, self.prompts, rule, max_tokens).engine
        self.stop = StopConditions(max_tokens, loaded.checkpoint.eos_ids)
        self.decode(PLAIN, EMPTY_MASK)
        self.plain_rate, _ = self.decode(PLAIN, EMPTY_MASK)

    def __call__(self, mask: SkipMask) -> Score:
        rate, acceptance = self.decode("skip", mask)
        return Score(speedup=rate / self.plain_rate, acceptance=acceptance)

    def decode(self, method: str, mask: SkipMask) -> tuple[float, float]:
        """(tokens per second, accepted of drafted tokens) over all prompts."""
        route, num_tokens, num_drafted, num_accepted = Route("search", self.loaded.draft_model(mask)), 0, 0, 0
        started = time.perf_counter()
        for ids in self.prompts:
            request = GenerationRequest(ids, SamplingParams(), self.stop, method, route)
            (sequence,) = self.engine.generate([request])
            num_tokens += len(sequence.output_ids)
            num_drafted += sequence.stats.num_drafted
            num_accepted += sequence.stats.num_accepted
        return num_tokens / (time.perf_counter() - started), num_accepted / max(num_drafted, 1)
