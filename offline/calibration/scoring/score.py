"""Scores a mask without decoding: one teacher-forced pass of the masked model over the full model's own text.

Each text is cut into spans; every span has a cache slot in which the full model has processed all that
comes before it, as a verification leaves it. A pass with a mask then covers all spans at once and writes
only inside them, so the next mask finds the same state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.replay import DraftRule, Trace, replay
from offline.records import Strict
from server.engine import Decoder, DraftModel, Row, SkipMask, TokenBatch

SPAN = 16
"""Places per span: short, because a real draft sees only few keys and values of its own making."""
HEAD_ROWS = 512
"""Rows that go through the output head at once, which bounds the memory of large vocabularies."""


class Score(Strict):
    """Predictions for a mask on some texts: speed over plain decoding, and share of drafted tokens accepted."""

    speedup: float
    acceptance: float


class MaskScorer:
    """Traces and scores of any mask on fixed texts; holds their keys and values."""

    def __init__(self, model: Decoder, texts: Sequence[Text]) -> None:
        self.model = model
        self.texts = [text for text in texts if len(text.output_ids) > 1]
        self.targets = [token for text in self.texts for token in text.output_ids[1:]]
        if self.texts:
            self.fill_cache()

    @torch.inference_mode()
    def fill_cache(self) -> None:
        """One full pass per text, whose keys and values every span's slot takes as far as the span's beginning."""
        groups = [spans_of(text) for text in self.texts]
        self.cache = self.model.new_cache(sum(map(len, groups)), max(len(spans[-1][1]) for spans in groups))
        rows: list[Row] = []
        for spans in groups:
            first = len(rows)
            start, ids = spans[-1]
            self.model.forward(TokenBatch.of([(first, 0, ids[:start])], self.cache), self.cache)
            for slot, (start, _) in enumerate(spans[1:], first + 1):
                self.cache.copy(first, slot, start)
            rows += [(slot, start, ids[start:]) for slot, (start, ids) in enumerate(spans, first)]
        self.batch = TokenBatch.of(rows, self.cache)

    @torch.inference_mode()
    def hidden_states(self, mask: SkipMask) -> Tensor:
        """States [places, hidden_size] after the final norm."""
        return self.model.forward(self.batch, self.cache, DraftModel(mask))

    @torch.inference_mode()
    def traces(self, mask: SkipMask) -> list[Trace]:
        """One trace per text; the first token of an answer comes from the prefill and is never drafted."""
        if not self.texts:
            return []
        tops, tokens = [], []
        for rows in self.hidden_states(mask).split(HEAD_ROWS):
            top, token = torch.softmax(self.model.logits(rows), -1).max(-1)
            tops.append(top)
            tokens.append(token)
        confidences = torch.cat(tops).tolist()
        agrees = (torch.cat(tokens).cpu() == torch.tensor(self.targets)).tolist()
        traces, at = [], 0
        for text in self.texts:
            end = at + len(text.output_ids) - 1
            traces.append(Trace(agrees[at:end], confidences[at:end]))
            at = end
        return traces


def spans_of(text: Text) -> list[tuple[int, list[int]]]:
    """(position of the first input, ids up to the last input) of each span of the answer after its first token."""
    ids = text.prompt_ids + text.output_ids
    first, last = len(text.prompt_ids), len(ids) - 1
    return [(start, ids[: min(start + SPAN, last)]) for start in range(first, last, SPAN)]


def score_traces(traces: Sequence[Trace], mask: SkipMask, rule: DraftRule, cost: CostModel) -> Score:
    """The predicted score; the engine does not draft with the empty mask, so that one is plain decoding."""
    if mask.is_empty:
        return Score(speedup=1.0, acceptance=0.0)
    result = replay(traces, rule)
    return Score(speedup=result.speedup(mask, cost), acceptance=result.acceptance)
