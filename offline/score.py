"""Scores a mask without decoding: one teacher-forced pass of the masked model over the full model's own text.

The full model writes continuations once. Each is cut into spans; every span has a cache slot in which
the full model has processed all that comes before it, as a verification leaves it. A pass with a mask
then covers all spans at once and writes only inside them, so the next mask finds the same state.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from offline.collect import Collection, Part
from offline.cost import CostModel
from offline.drafting import DraftRule, Trace, replay
from offline.settings import CalibrationSettings
from offline.stage import StageRecord, Strict, digest_of, reused_or_made
from offline.workbench import Workbench
from server.engine import (
    Decoder,
    Engine,
    EngineConfig,
    GenerationRequest,
    Method,
    Row,
    SamplingParams,
    SkipMask,
    StopConditions,
    TokenBatch,
)

SPAN = 16
"""Places per span: short, because a real draft sees only few keys and values of its own making."""
HEAD_ROWS = 512
"""Rows that go through the output head at once, which bounds the memory of large vocabularies."""
WRITERS = 8


class Text(Strict):
    """A prompt and what the full model greedily answers."""

    prompt_ids: list[int]
    output_ids: list[int]


class Texts(StageRecord):
    """Texts by domain, for the search and for checking what it found."""

    search: dict[str, list[Text]]
    heldout: dict[str, list[Text]]


class Score(Strict):
    """What a mask is predicted to do on some texts."""

    speedup: float
    acceptance: float


def write_texts(bench: Workbench, collection: Collection, settings: CalibrationSettings, work: Path) -> Texts:
    digest = digest_of(collection.digest, settings.continuation_tokens)

    def make() -> Texts:
        length = settings.continuation_tokens
        search = make_texts(bench, collection, Part.SEARCH, length)
        return Texts(digest=digest, search=search, heldout=make_texts(bench, collection, Part.HELDOUT, length))

    return reused_or_made(work / "texts.json", Texts, digest, make)


def make_texts(bench: Workbench, collection: Collection, part: Part, length: int) -> dict[str, list[Text]]:
    prompts = {domain: collection.ids(domain, part) for domain in collection.domains}
    longest = max(len(ids) for group in prompts.values() for ids in group) + length
    engine = Engine(bench.model, EngineConfig(max_batch=WRITERS, max_length=longest, method=Method.PLAIN))
    stop = StopConditions(length, bench.checkpoint.eos_ids)
    texts: dict[str, list[Text]] = {}
    for domain, group in tqdm(prompts.items(), f"texts for {part}", delay=2, leave=False):
        sequences = engine.generate([GenerationRequest(ids, SamplingParams(), stop) for ids in group])
        texts[domain] = [Text(prompt_ids=s.request.prompt_ids, output_ids=s.output_ids) for s in sequences]
    return texts


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
                for stored in (self.cache.keys, self.cache.values):
                    stored[:, slot, :, :start] = stored[:, first, :, :start]
            rows += [(slot, start, ids[start:]) for slot, (start, ids) in enumerate(spans, first)]
        self.batch = TokenBatch.of(rows, self.cache)

    @torch.inference_mode()
    def traces(self, mask: SkipMask) -> list[Trace]:
        """One trace per text; the first token of an answer comes from the prefill and is never drafted."""
        if not self.texts:
            return []
        hidden = self.model.forward(self.batch, self.cache, mask)
        tops, tokens = [], []
        for rows in hidden.split(HEAD_ROWS):
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
