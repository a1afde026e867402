"""Passes over some of the sub-layers, for tokens whose keys and values the cache holds already."""

import pytest
import torch

from server.engine import Decoder, DraftModel, KVCache, SkipMask, TokenBatch
from tests.batches import Models, prompt

KINDS = ["torch", "float32", "bfloat16"]
IDS = prompt(24)
FIRST = 19
"""The tokens from here on are read again."""


@pytest.fixture(params=KINDS)
def decoder(request: pytest.FixtureRequest, models: Models) -> Decoder:
    return models(request.param)


@pytest.fixture
def cache(decoder: Decoder) -> KVCache:
    """Holds the text in its slot 1, read by the full model."""
    cache = decoder.new_cache(2, 64)
    with torch.inference_mode():
        decoder.forward(TokenBatch([(1, 0, IDS)], cache), cache)
    return cache


def check_same(decoder: Decoder, actual: torch.Tensor, expected: torch.Tensor) -> None:
    """The kernels sum a row in one order, alone and among others; torch need not."""
    if decoder.native:
        assert torch.equal(actual, expected)
    else:
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_all_of_them_in_parts_are_a_full_pass_and_leave_the_cache_alone(decoder: Decoder, cache: KVCache) -> None:
    batch, stream = TokenBatch([(1, FIRST, IDS[FIRST:])], cache), None
    expected = decoder.forward(batch, cache)
    keys, values = cache.keys.clone(), cache.values.clone()
    for part in (range(3), range(3, 4), range(4, 8)):
        stream = decoder.sublayers(batch, cache, stream, part)
    assert stream is not None
    states = decoder.normed(stream)
    torch.testing.assert_close(states.float(), expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(cache.keys, keys)
    assert torch.equal(cache.values, values)
    whole = decoder.sublayers(batch, cache, None, range(8))
    check_same(decoder, whole, stream)


@torch.inference_mode()
def test_several_states_may_stand_at_one_place(decoder: Decoder, cache: KVCache) -> None:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(5, 3, decoder.config.hidden_size, generator=generator)
    rows = [(1, FIRST + i, [token]) for i, token in enumerate(IDS[FIRST:]) for _ in range(3)]
    together = decoder.sublayers(TokenBatch(rows, cache), cache, states.flatten(0, 1), range(2, 5)).view(5, 3, -1)
    for variant in range(3):
        alone = decoder.sublayers(
            TokenBatch([(1, FIRST, IDS[FIRST:])], cache), cache, states[:, variant].contiguous(), range(2, 5)
        )
        check_same(decoder, together[:, variant], alone)
    assert not torch.equal(together[:, 0], together[:, 1])


@torch.inference_mode()
def test_a_draft_leaves_sublayers_out(decoder: Decoder, cache: KVCache) -> None:
    batch = TokenBatch([(1, FIRST, IDS[FIRST:])], cache)
    skipping = decoder.sublayers(batch, cache, None, range(8), DraftModel(SkipMask(frozenset({1}), frozenset({2}))))
    stream = decoder.sublayers(batch, cache, None, range(2))
    stream = decoder.sublayers(batch, cache, stream, range(3, 5))
    check_same(decoder, skipping, decoder.sublayers(batch, cache, stream, range(6, 8)))
    nothing = decoder.sublayers(batch, cache, stream, range(4, 4))
    check_same(decoder, nothing.float(), stream.float())
