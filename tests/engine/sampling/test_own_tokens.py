"""A check's tokens: one call for all, and again only for requests that adjust their logits."""

from dataclasses import replace

import pytest
from torch import Tensor

from server.engine import Adjustments, SamplingParams
from server.engine.sampling import own_tokens
from server.engine.sampling.sampler import Sampled, Span
from server.engine.sampling.sampler import sample as redrawn
from tests.batches import GREEDY, Models, new_engine, prompt, request

SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=4)
BIASED = replace(SAMPLED, adjustments=Adjustments(logit_bias=((9, 5.0),)))


@pytest.mark.parametrize("kind", ["torch", "float32", "bfloat16"])
def test_only_requests_that_adjust_their_logits_are_drawn_again(
    models: Models, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Whoever only reports log-probabilities, or shares the batch, is not; and all texts are what they are alone."""
    again: list[Span] = []

    def sample(logits: Tensor, spans: list[Span]) -> list[Sampled]:
        again.extend(spans)
        return redrawn(logits, spans)

    monkeypatch.setattr(own_tokens, "sample", sample)
    asked = [
        request(prompt(9, seed=1), sampling=GREEDY),
        replace(request(prompt(9, seed=2), sampling=SAMPLED), num_logprobs=2),
        request(prompt(9, seed=3), sampling=BIASED),
    ]
    together = new_engine(models(kind)).generate(asked)
    assert again and all(span.sampling is BIASED for span in again)
    alone = [new_engine(models(kind), 1).generate([one])[0] for one in asked]
    assert [sequence.output_ids for sequence in together] == [sequence.output_ids for sequence in alone]
