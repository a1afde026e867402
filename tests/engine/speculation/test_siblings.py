"""Second choices beside a greedy chain: which are worth a row, and that the kernels find them."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine import Decoder, DraftModel, DraftVocabulary, Sequence, SkipMask, TokenBatch, load_checkpoint
from server.engine.model import kernels
from server.engine.model.draft_head import DraftHead
from server.engine.model.native_decoder import Seconds
from server.engine.sampling.native_sampling import likeliest
from server.engine.speculation.base import Feedback
from server.engine.speculation.siblings import FIRST_ACCEPTANCE, Siblings, second_choice
from tests.batches import request, started_batch
from tests.tiny import CPU, save_random_model, tiny_config


def test_the_likeliest_seconds_that_are_worth_a_row_stand_beside_a_chain() -> None:
    siblings, one = Siblings(), Sequence.of(0, request([1, 5]), "low-bit", 6, 200)
    chain, seconds = [7, 8, 9], [(17, 0.1), (18, 0.4), (19, 0.3)]
    worth = [0.1, FIRST_ACCEPTANCE * 0.4, FIRST_ACCEPTANCE**2 * 0.3]
    assert worth == pytest.approx([0.1, 0.28, 0.147])
    for row_price, most, expected in [
        (0.0, 9, ([7, 18], [7, 8, 19], [17])),
        (0.12, 9, ([7, 18], [7, 8, 19])),
        (0.0, 4, ([7, 18],)),
        (0.3, 9, ()),
        (0.0, 3, ()),
    ]:
        siblings.note(one, chain, seconds)
        assert siblings.branches(one, row_price, most) == expected
    assert siblings.branches(one, 0.0, 9) == (), "a chain is asked for once"


def test_they_are_worth_less_where_chains_are_often_wrong() -> None:
    siblings, one = Siblings(), Sequence.of(0, request([1, 5]), "low-bit", 6, 200)
    for _ in range(40):
        siblings.learn(Feedback([7, 8], [6], 0))
    siblings.note(one, [7, 8], [(17, 0.1), (18, 0.4)])
    assert siblings.branches(one, 0.05, 9) == ([17],)
    siblings.note(one, [7, 8], [(17, 0.1), (18, 0.4)])
    siblings.forget(one)
    assert siblings.branches(one, 0.0, 9) == ()


@pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")
@pytest.mark.parametrize("size", [None, 40])
@torch.inference_mode()
def test_the_kernels_find_what_came_second(size: int | None, tmp_path: Path) -> None:
    model = Decoder(load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU))
    assert model.native is not None
    vocabulary = DraftVocabulary(tuple(range(0, 2 * size, 2))) if size else None
    draft, cache = DraftModel(SkipMask(frozenset({1}), frozenset({2})), vocabulary), model.new_cache(3, 64)
    head = DraftHead(model, vocabulary) if vocabulary else None
    starts, limits, seconds = started_batch(model, cache), [5, 0, 2], list[Seconds]()
    native = head.native if head else None
    chains = model.native.draft(starts, cache, draft, limits, 0.0, native, seconds=seconds)
    assert [len(chain) for chain in chains] == [len(each) for each in seconds] == limits
    for (slot, first, [last]), chain, found in zip(starts.rows, chains, seconds, strict=True):
        for depth, (token, chance) in enumerate(found):
            batch = TokenBatch([(slot, first + depth, [[last, *chain][depth]])], cache)
            logits = (native or model).logits(model.forward(batch, cache, draft))[0]
            tops, places = logits.softmax(-1).topk(2)
            expected = int(places[1]) if native is None else native.ids[int(places[1])]
            assert token == expected and chance == pytest.approx(float(tops[1]), rel=1e-3)
            same, about = second_choice(logits, float(tops[0]), native)
            assert same == expected and about == pytest.approx(float(tops[1]), rel=1e-3)


@given(st.integers(1, 700), st.integers(1, 9), st.integers(0, 9))
def test_the_likeliest_tokens_are_those_of_a_sort(size: int, count: int, seed: int) -> None:
    logits = torch.randperm(2 * size, generator=torch.Generator().manual_seed(seed)).float().view(2, size)
    assert likeliest(logits, count) == logits.topk(min(count, size), -1).indices.tolist()
