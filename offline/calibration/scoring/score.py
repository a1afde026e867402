"""Scores a draft without decoding: one teacher-forced pass of its model over the full model's own text.

Each text is cut into spans; every span has a cache slot in which the full model has processed all that
comes before it, as a verification leaves it. A pass of a draft then covers all spans at once and writes
only inside them, so the next draft finds the same state.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from offline.calibration.scoring.continuations import Text
from offline.calibration.scoring.cost import CostModel
from offline.calibration.scoring.drafts import DraftChoice, DraftParts, DraftRule
from offline.calibration.scoring.replay import Trace, best_rule, replay
from offline.calibration.scoring.text_head import TextHead
from offline.records import Strict
from server.engine import Decoder, DraftModel, Row, TokenBatch

SPAN = 16
"""Places per span: short, because a real draft sees only few keys and values of its own making."""
HEAD_ROWS = 512
"""Rows that go through the output head at once, which bounds the memory of large vocabularies."""


class Score(Strict):
    """Predictions for a draft on some texts: speed over plain decoding, and share of drafted tokens accepted."""

    speedup: float
    acceptance: float


PLAIN_SCORE = Score(speedup=1.0, acceptance=0.0)


class DraftScorer:
    """Traces of any draft on fixed texts; holds their keys and values.

    It remembers the last states and the last head, so drafts that differ in their vocabularies share a pass.
    """

    def __init__(self, model: Decoder, parts: DraftParts, texts: Sequence[Text]) -> None:
        self.model = model
        self.parts = parts
        self.texts = [text for text in texts if len(text.output_ids) > 1]
        self.targets = torch.tensor([token for text in self.texts for token in text.output_ids[1:]])
        lengths = torch.tensor([len(text.output_ids) - 1 for text in self.texts], dtype=torch.long)
        self.owners = torch.arange(len(self.texts)).repeat_interleave(lengths)
        """The text of each place."""
        self.last_states: tuple[DraftChoice, Tensor] | None = None
        self.last_head: tuple[DraftChoice, TextHead] | None = None
        if self.texts:
            self.fill_cache()

    @torch.inference_mode()
    def fill_cache(self) -> None:
        """One full pass per text, whose keys and values every span's slot takes as far as the span's beginning."""
        groups = [spans_of(text) for text in self.texts]
        self.cache = self.model.new_cache(sum(map(len, groups)), max(len(spans[-1][1]) for spans in groups))
        rows: list[Row] = []
        before: list[Tensor] = []
        for spans in groups:
            first = len(rows)
            ids = spans[-1][1]
            # The last span is read too, for its states; what that leaves in the cache each pass writes anew.
            states = self.model.forward(TokenBatch([(first, 0, ids)], self.cache), self.cache)
            before.append(states[spans[0][0] - 1 : -1])
            for slot, (start, _) in enumerate(spans[1:], first + 1):
                self.cache.copy(first, slot, start)
            rows += [(slot, start, ids[start:]) for slot, (start, ids) in enumerate(spans, first)]
        self.batch = TokenBatch(rows, self.cache)
        self.states_before = torch.cat(before)
        """The full model's state [places, hidden_size] before each place, which a patch reads."""

    @torch.inference_mode()
    def hidden_states(self, choice: DraftChoice) -> Tensor:
        """States [places, hidden_size] after the final norm, which no vocabulary changes."""
        key = choice.with_vocabulary(None)
        if self.last_states is None or self.last_states[0] != key:
            decoder = self.model.drafting(choice.is_low_bit)
            patch = self.parts.patches[choice.patch_of] if choice.patch_of else None
            draft = DraftModel(choice.mask, patch=patch)
            self.last_states = key, decoder.forward(self.batch, self.cache, draft, self.states_before)
        return self.last_states[1]

    def head(self, choice: DraftChoice) -> TextHead:
        """What the draft chooses with on these texts, which no mask changes."""
        key = DraftChoice(vocabulary=choice.vocabulary, is_low_bit=choice.is_low_bit)
        if self.last_head is None or self.last_head[0] != key:
            vocabulary = self.parts.vocabulary(choice.vocabulary) if choice.vocabulary else None
            decoder = self.model.drafting(choice.is_low_bit)
            self.last_head = key, TextHead(decoder, vocabulary, self.texts)
        return self.last_head[1]

    @torch.inference_mode()
    def traces(self, choice: DraftChoice) -> list[Trace]:
        """One trace per text; the first token of an answer comes from the prefill and is never drafted."""
        if not self.texts:
            return []
        head = self.head(choice)
        states = self.hidden_states(choice)
        chosen = [
            head.choose(*rows) for rows in zip(states.split(HEAD_ROWS), self.owners.split(HEAD_ROWS), strict=True)
        ]
        confidences = torch.cat([top for top, _ in chosen]).tolist()
        agrees = ((torch.cat([token for _, token in chosen]).cpu() == self.targets) & head.is_known).tolist()
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


def score_traces(traces: Sequence[Trace], choice: DraftChoice, rule: DraftRule, cost: CostModel) -> Score:
    """The predicted score by a rule; the draft that is the model itself is plain decoding."""
    if choice.is_full:
        return PLAIN_SCORE
    result = replay(traces, rule)
    return Score(speedup=result.speedup(choice, cost), acceptance=result.acceptance)


def best_score(traces: Sequence[Trace], choice: DraftChoice, cost: CostModel) -> Score:
    """The predicted score by the rule that suits the draft best."""
    return score_traces(traces, choice, best_rule(traces, choice, cost), cost)
