"""The cache: batched rows equal separate ones, and nothing at or above a cursor is ever read."""

import math
import random
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from server.engine import (
    FULL_MODEL,
    Decoder,
    DecoderConfig,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    KVCache,
    Route,
    SamplingParams,
    SkipMask,
    StopConditions,
    TokenBatch,
    load_checkpoint,
)
from server.engine.config import LANES
from server.engine.kvcache.cache import BLOCK_LENGTH
from tests.tiny import CPU, save_random_model, tiny_config

HEAD_DIMS = {"torch": 8, "kernels": 16}
"""The CPU kernels take heads of whole vectors; where they are not built, torch runs both."""


class PoisonedDecoder(Decoder):
    """Overwrites, before every pass, all positions from each row's first on, in every layer; whole panels of kernels.

    A panel holds its positions side by side, so one in which a row begins has others that are needed.
    """

    poison = math.nan

    def forward(
        self, batch: TokenBatch, cache: KVCache, draft: DraftModel = FULL_MODEL, states: Tensor | None = None
    ) -> Tensor:
        for slot, start, _ in batch.rows:
            first = start + -start % LANES if self.native else start
            for number, block in enumerate(cache.table(slot, cache.table_size * BLOCK_LENGTH)):
                if block:
                    place = max(first - number * BLOCK_LENGTH, 0)
                    cache.keys[block, :, :, place:] = self.poison
                    cache.values[block, :, :, place:] = self.poison
        return super().forward(batch, cache, draft, states)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def save(head_dim: int) -> Path:
        return save_random_model(tmp_path_factory.mktemp("heads"), tiny_config(head_dim=head_dim), seed=4)

    return {name: save(head_dim) for name, head_dim in HEAD_DIMS.items()}


@pytest.fixture(params=HEAD_DIMS)
def decoder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Decoder:
    return Decoder(load_checkpoint(str(folders[request.param]), torch.float32, CPU))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def random_ids(count: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(262) for _ in range(count)]


def hidden_alone(decoder: Decoder, ids: list[int]) -> Tensor:
    cache = decoder.new_cache(1, 64)
    return decoder.forward(TokenBatch([(0, 0, ids)], cache), cache)


def test_ragged_rows_in_scattered_slots_equal_separate_rows(decoder: Decoder) -> None:
    texts = [random_ids(length, length) for length in (5, 1, 9, 40)]
    cache = decoder.new_cache(7, 64)
    rows = [(slot, 0, ids) for slot, ids in zip([5, 0, 3, 6], texts, strict=True)]
    batch = TokenBatch(rows, cache)
    parts = decoder.forward(batch, cache).split([len(ids) for ids in texts])
    for part, ids in zip(parts, texts, strict=True):
        torch.testing.assert_close(part, hidden_alone(decoder, ids), atol=1e-4, rtol=1e-4)
    assert batch.last_rows.tolist() == [4, 5, 14, 54]
    others = [block for slot in (1, 2, 4) for block in cache.table(slot, 64)]
    assert not cache.keys[others].any()


def test_rows_at_different_positions_continue_their_own_slots(decoder: Decoder) -> None:
    texts = [random_ids(length, length) for length in (20, 12, 7)]
    cache = decoder.new_cache(3, 64)
    for slot, ids in enumerate(texts):
        decoder.forward(TokenBatch([(slot, 0, ids[:-4])], cache), cache)
    for order in ([0, 1, 2], [2, 0]):
        rows = [(slot, len(texts[slot]) - 4, texts[slot][-4:]) for slot in order]
        hidden = decoder.forward(TokenBatch(rows, cache), cache).split(4)
        for slot, part in zip(order, hidden, strict=True):
            torch.testing.assert_close(part, hidden_alone(decoder, texts[slot])[-4:], atol=1e-4, rtol=1e-4)


def test_the_kernels_give_the_same_bits_for_any_batch(folders: dict[str, Path]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        decoder = Decoder(load_checkpoint(str(folders["kernels"]), dtype, CPU))
        if decoder.native is None:
            pytest.skip("the CPU kernels are not built here")
        ids = random_ids(31, 1)
        cache = decoder.new_cache(8, 64)
        whole = decoder.forward(TokenBatch([(0, 0, ids)], cache), cache)
        single = [decoder.forward(TokenBatch([(1, i, [token])], cache), cache) for i, token in enumerate(ids)]
        assert torch.equal(torch.cat(single), whole)
        rows = [(slot, 0, ids[: 4 * slot]) for slot in range(7, 1, -1)]
        parts = decoder.forward(TokenBatch(rows, cache), cache).split([len(row) for _, _, row in rows])
        assert all(torch.equal(part, whole[: len(part)]) for part in parts)
        logits = decoder.logits(whole)
        assert all(torch.equal(decoder.logits(whole[i : i + 1])[0], logits[i]) for i in range(len(ids)))


def test_what_a_blocks_last_user_left_does_not_reach_the_next(decoder: Decoder) -> None:
    requests = [GenerationRequest(random_ids(n, n), SamplingParams(), StopConditions(8)) for n in (3, 40)]
    engine = Engine(decoder, EngineConfig(max_batch=2, reuses_prefixes=False))
    expected = [s.output_ids for s in engine.generate(requests)]
    for part in (engine.cache.keys, engine.cache.values):
        part[1:].fill_(math.inf)
    assert [s.output_ids for s in engine.generate(requests)] == expected


@pytest.mark.parametrize(
    ("name", "max_batch", "poison", "dtype"),
    [
        ("kernels", 1, math.nan, torch.float32),
        ("kernels", 4, math.nan, torch.float32),
        ("kernels", 1, math.nan, torch.bfloat16),
        ("kernels", 4, math.nan, torch.bfloat16),
        ("torch", 1, math.nan, torch.float32),
        ("torch", 4, 1e4, torch.float32),
    ],
)
def test_nothing_at_or_above_a_cursor_is_read(
    folders: dict[str, Path], name: str, max_batch: int, poison: float, dtype: torch.dtype
) -> None:
    """Torch's attention multiplies masked keys by zero, so there the poison of a batch is large, not NaN."""
    checkpoint = load_checkpoint(str(folders[name]), dtype, CPU)
    poisoned = PoisonedDecoder(checkpoint)
    poisoned.poison = poison
    mask = SkipMask(frozenset({1, 3}), frozenset({0}))
    requests = [
        GenerationRequest(
            [*random_ids(length, length), 7, 8, 9, 7, 8],
            SamplingParams(),
            StopConditions(24),
            method=method,
            route=Route("test", DraftModel(mask)),
            max_draft=4,
        )
        for length, method in [
            (3, "skip"),
            (17, "cascade"),
            (33, "plain"),
            (8, "lookup"),
            (5, "skip"),
        ]
    ]
    config = EngineConfig(max_batch=max_batch, confidence=0.0)
    expected = [s.output_ids for s in Engine(Decoder(checkpoint), config).generate(requests)]
    sequences = Engine(poisoned, config).generate(requests)
    assert [s.output_ids for s in sequences] == expected
    assert sum(s.stats.num_drafted - s.stats.num_accepted for s in sequences) > 0


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_takes_memory_only_where_it_is_written(dtype: torch.dtype) -> None:
    config = DecoderConfig(8, 64, 64, 4, 4, 64, 100, 65536, 1e-5)
    before = resident_bytes()
    cache = KVCache(config, 8, 8192, dtype, CPU)
    assert cache.keys.shape == cache.values.shape == (8 * 256, 8, 4, 32, 64)
    assert resident_bytes() - before < cache.keys.nbytes // 10
    assert cache.keys.dtype is dtype and not cache.values[0, 0].any()
    cache.keys[0] = 1
    assert cache.keys[0].all() and not cache.keys[1].any()
