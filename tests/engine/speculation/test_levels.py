"""Chains in two levels: a cheap pass checks what the texts guess, and the chain is what it is without guesses."""

from ctypes import Array

import pytest
import torch

from server.engine import DraftModel, DraftVocabulary, Engine, SamplingParams, Sequence, SkipMask
from server.engine.history.counts import library
from server.engine.kvcache.batch import TokenBatch
from server.engine.kvcache.cache import KVCache
from server.engine.model.kernels import Sampling
from server.engine.model.native_decoder import NativeDecoder
from server.engine.model.native_head import NativeHead
from server.engine.speculation.drafters import LowBitDrafter, SkipDrafter
from tests.batches import GREEDY, MASK, Models, new_engine, prompt, random_patch, read_prompts, request

pytestmark = pytest.mark.skipif(library() is None, reason="no compiler has built the table")

VOCABULARY = DraftVocabulary(tuple(range(0, 262, 2)))
DRAFTS = [
    DraftModel(MASK, max_draft=9, confidence=0.0),
    DraftModel(MASK, VOCABULARY, max_draft=9, confidence=0.0),
    DraftModel(SkipMask(), is_low_bit=True, max_draft=6, confidence=0.0),
    DraftModel(MASK, is_low_bit=True, max_draft=9, confidence=0.02, floor=0.01),
    DraftModel(MASK, max_draft=9, confidence=1.0),
    DraftModel(MASK, max_draft=9, confidence=0.0, floor=1.01),
]
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=5)
HOT = SamplingParams(temperature=1.5, seed=6)


class CountingDecoder:
    """The kernels' decoder, and how many tokens each of its passes had."""

    def __init__(self, decoder: NativeDecoder) -> None:
        self.decoder = decoder
        self.passes: list[int] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.decoder, name)

    def chosen(
        self,
        batch: TokenBatch,
        cache: KVCache,
        draft: DraftModel,
        head: NativeHead | None,
        samplings: Array[Sampling] | None,
    ) -> tuple[list[int], list[float]]:
        self.passes.append(batch.num_tokens)
        return self.decoder.chosen(batch, cache, draft, head, samplings)


def started(engine: Engine, samplings: list[SamplingParams]) -> list[Sequence]:
    """A sequence of each sampling whose prompt was read, and whose drafts are as long as the draft model says."""
    asked = [request(prompt(7, seed=i), 40, sampling=sampling) for i, sampling in enumerate(samplings)]
    sequences = [engine.add(each) for each in asked]
    read_prompts(engine)
    for sequence in sequences:
        object.__setattr__(sequence.request, "max_draft", None)
    return sequences


@pytest.mark.parametrize("samplings", [[GREEDY] * 3, [SAMPLED, HOT, GREEDY]])
@pytest.mark.parametrize("kind", ["right", "wrong", "none"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_a_guessed_chain_is_the_chain_of_the_draft_alone(
    models: Models, monkeypatch: pytest.MonkeyPatch, draft: DraftModel, kind: str, samplings: list[SamplingParams]
) -> None:
    """Three sequences in a batch; of a right guess the whole chain takes one pass and its own token."""
    model = models("float32 int4")
    engine = new_engine(model, max_batch=3)
    with torch.inference_mode():
        sequences = started(engine, samplings)
        alone = SkipDrafter(model, engine.cache, 0.0).chains(sequences, draft, 0.3)
        drafter = engine.speculator.drafters["skip"]
        assert isinstance(drafter, SkipDrafter)
        suffix = engine.speculator.drafters["suffix"]
        suffix.propose(sequences, 0.3)
        for sequence in sequences:
            followers = [*alone.get(sequence.id, []), 0, 0] if kind == "right" else [9, 9, 9]
            for _ in range(50 if kind != "none" else 0):
                text = drafter.texts[sequence.id]
                text.counts.add(0, sequence.ids + followers, len(sequence.ids))
        decoder = model.drafting(draft.is_low_bit)
        assert decoder.native is not None
        counting = CountingDecoder(decoder.native)
        monkeypatch.setattr(decoder, "native", counting)
        guessed = drafter.chains(sequences, draft, 0.3)
    assert guessed == alone
    longest = max(map(len, alone.values()), default=1)
    assert len(counting.passes) == (1 if kind == "right" else longest)


@pytest.mark.parametrize("samplings", [[SAMPLED] * 3, [GREEDY, HOT, SAMPLED]])
@pytest.mark.parametrize("number", range(len(DRAFTS) + 1))
def test_the_kernels_draw_a_chain_as_torch_does(models: Models, number: int, samplings: list[SamplingParams]) -> None:
    """A whole chain in one call: every token by its own noise and place, of a part of the vocabulary too."""
    model = models("float32 int4")
    engine = new_engine(model, max_batch=3)
    drafter = SkipDrafter(model, engine.cache, 0.0)
    draft = [*DRAFTS, DraftModel(patch=random_patch(model, 2), max_draft=5, confidence=0.0)][number]
    with torch.inference_mode():
        sequences = started(engine, samplings)
        head = drafter.heads.grown(draft, sequences)
        drawn = drafter.drawn_chains(sequences, draft, head)
        assert drafter.chains(sequences, draft, 0.3) == {key: chain for key, chain in drawn.items() if chain}
    lengths = {len(chain) for chain in drawn.values()}
    assert lengths == {0} if draft.floor > 1 else max(lengths) > 0


def test_only_a_method_with_texts_is_guessed_for(models: Models) -> None:
    """`low-bit` alone makes its passes one by one; in the cascade they go over what the texts guess."""
    model = models("float32 int4")
    for method, is_known in (("low-bit", False), ("cascade", True)):
        engine = new_engine(model, 1, baseline_share=0)
        sequence = engine.add(request(prompt(7), 40, method=method))
        for _ in range(3):
            engine.step()
        low_bit = engine.speculator.drafters["low-bit"]
        assert isinstance(low_bit, LowBitDrafter) and isinstance(sequence, Sequence)
        assert (sequence.id in low_bit.texts) == is_known
