"""A check's tokens: one call for all, again only for requests that adjust their logits, few rows of logits at once."""

from dataclasses import replace

import pytest
from torch import Tensor

from server.engine import MAX_DRAFT, Adjustments, Engine, GenerationRequest, SamplingParams, StepStats, TokenLogprobs
from server.engine.model.checked import MOST_LOGITS
from server.engine.sampling import own_tokens
from server.engine.sampling.own_tokens import redrawn
from server.engine.sampling.sampler import Span
from server.engine.scheduler import StepPlan
from server.engine.speculation.base import Draft
from tests.batches import GREEDY, Models, new_engine, prompt, request, run

SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=4)
BIASED = replace(SAMPLED, adjustments=Adjustments(logit_bias=((9, 5.0),)))


@pytest.mark.parametrize("kind", ["torch", "float32", "bfloat16"])
def test_only_requests_that_adjust_their_logits_are_drawn_again(
    models: Models, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever only reports log-probabilities, or shares the batch, is not; and all texts are what they are alone."""
    again: list[Span] = []

    def noted(span: Span, logits: Tensor) -> list[int]:
        again.append(span)
        return redrawn(span, logits)

    monkeypatch.setattr(own_tokens, "redrawn", noted)
    asked = [
        request(prompt(9, seed=1), sampling=GREEDY),
        replace(request(prompt(9, seed=2), sampling=SAMPLED), num_logprobs=2),
        request(prompt(9, seed=3), sampling=BIASED),
    ]
    together = new_engine(models(kind)).generate(asked)
    assert again and all(span.sampling is BIASED for span in again)
    alone = [new_engine(models(kind), 1).generate([one])[0] for one in asked]
    assert [sequence.output_ids for sequence in together] == [sequence.output_ids for sequence in alone]


NUM_SLOTS = 6
PENALISED = replace(SAMPLED, adjustments=Adjustments(repetition_penalty=1.2, frequency_penalty=0.1))


def many_rows() -> list[GenerationRequest]:
    """Whose drafts have more rows together than logits are held of; every other one reports log-probabilities."""
    kinds = [GREEDY, SAMPLED, PENALISED]
    asked = [request(prompt(9, seed=i), 90, sampling=kinds[i % 3], method="lookup") for i in range(NUM_SLOTS)]
    return [replace(one, num_logprobs=2 if i % 2 else None, max_draft=None) for i, one in enumerate(asked)]


def answers(engine: Engine, asked: list[GenerationRequest]) -> list[tuple[list[int], list[TokenLogprobs]]]:
    sequences = [engine.add(one) for one in asked]
    emissions, _ = run(engine)
    scores = {s.id: [score for e in emissions if e.sequence is s for score in e.logprobs] for s in sequences}
    return [(sequence.output_ids, scores[sequence.id]) for sequence in sequences]


def foresee(engine: Engine, texts: dict[tuple[int, ...], list[int]], counts: list[int]) -> None:
    """Has the engine draft the longest drafts, all right but one token in the middle; notes the rows of each check."""

    def drafts(plan: StepPlan, stats: StepStats) -> dict[int, Draft]:
        found = {}
        for sequence in plan.decoding:
            done = len(sequence.output_ids)
            ids = texts[tuple(sequence.request.prompt_ids)][done : done + sequence.draft_room]
            found[sequence.id] = Draft([*ids[:17], *(token ^ 1 for token in ids[17:18]), *ids[18:]], "lookup")
        counts.append(sum(1 + len(draft.ids) for draft in found.values()))
        return found

    engine.draft = drafts  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", ["torch", "float32", "bfloat16"])
def test_logits_of_few_rows_are_held_at_once(models: Models, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """And all is as in plain decoding, also where a piece ends within a draft."""
    model, asked = models(kind), many_rows()
    plain = [answers(new_engine(model, 1), [replace(one, method="plain")])[0] for one in asked]
    held: list[int] = []
    logits = model.body.logits

    def noted(hidden: Tensor, *others: Tensor | None, **named: Tensor | None) -> Tensor:
        held.append(hidden.shape[0])
        return logits(hidden, *others, **named)

    monkeypatch.setattr(model.body, "logits", noted)
    engine, counts = new_engine(model, NUM_SLOTS), list[int]()
    foresee(engine, {tuple(one.prompt_ids): text for one, (text, _) in zip(asked, plain, strict=True)}, counts)
    before = model.native.checking.logits.data_ptr() if model.native else 0
    drafted = answers(engine, asked)
    assert max(counts) > 2 * MOST_LOGITS and max(counts) == NUM_SLOTS * (MAX_DRAFT + 1)
    assert 0 < max(held) <= MOST_LOGITS
    if model.native:
        memory = model.native.checking.logits
        assert (memory.data_ptr(), memory.shape[0]) == (before, MOST_LOGITS), "allocated once, and for all"
    for (text, scores), (expected, known) in zip(drafted, plain, strict=True):
        assert text == expected
        assert [score.token_id for score in scores] == [score.token_id for score in known]
        if kind == "torch":
            assert [s.logprob for s in scores] == pytest.approx([s.logprob for s in known], abs=1e-4)
        else:
            assert scores == known, "bit for bit"
