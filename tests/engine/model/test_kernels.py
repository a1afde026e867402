"""The CPU kernels: every build agrees with torch, and a row's result does not depend on the other rows."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Type

from server.engine import (
    FULL_MODEL,
    Activations,
    Checkpoint,
    Decoder,
    DraftModel,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
    SkipMask,
    StopConditions,
    TokenBatch,
    load_checkpoint,
)
from server.engine.model import kernels
from tests.batches import greedy_chains, random_patch, started_batch
from tests.gguf_files import TOKENS, wide_config, write_gguf
from tests.tiny import CPU, save_random_model, tiny_config

SHAPES = {
    "grouped": {"num_key_value_heads": 2, "head_dim": 16},
    "one key head": {"num_key_value_heads": 1, "head_dim": 32},
    "multi-head with biases": {"num_key_value_heads": 4, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "wide": {"num_key_value_heads": 2, "head_dim": 64, "hidden_size": 96, "intermediate_size": 208},
}
FORMATS = [Type.Q4_1, Type.Q5_0, Type.Q8_0, Type.Q4_K, Type.Q6_K, Type.Q2_K]
"""Types for each way in which the kernels read codes and scales."""

pytestmark = pytest.mark.skipif(kernels.build() is None, reason="no kernels for this processor")


def decoders(folder: Path, dtype: torch.dtype) -> tuple[Decoder, Decoder]:
    """(with kernels, without)."""
    native = Decoder(load_checkpoint(str(folder), dtype, CPU))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "is_supported", lambda *_: False)
        return native, Decoder(load_checkpoint(str(folder), dtype, CPU))


def a_checkpoint(folder: Path, shape: dict[str, int], dtype: torch.dtype, kind: Type | None) -> Checkpoint:
    """A random model, read from a GGUF file of one type where one is given."""
    if kind is None:
        return load_checkpoint(str(save_random_model(folder, tiny_config(**shape))), dtype, CPU)
    wide = wide_config(**{**shape, "head_dim": 64, "num_hidden_layers": 2, "vocab_size": len(TOKENS)})
    write_gguf(folder / "model.gguf", save_random_model(folder, wide), kind)
    return load_checkpoint(str(folder / "model.gguf"), dtype, CPU, quantization="auto")


def error(states: torch.Tensor, exact: torch.Tensor) -> float:
    """Root mean square of the difference."""
    return float((states - exact).square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_hidden_states_and_logits_agree_with_torch(build: str, shape: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = save_random_model(tmp_path, tiny_config(**SHAPES[shape]))
    native, plain = decoders(folder, dtype)
    exact = decoders(folder, torch.float32)[1]
    assert native.native is not None
    for draft in (FULL_MODEL, DraftModel(SkipMask(frozenset({0, 2}), frozenset({1})))):
        rows = [(0, 0, list(range(7, 30))), (1, 0, [5, 9]), (3, 0, list(range(40, 49)))]
        states = []
        for decoder in (native, plain, exact):
            cache = decoder.new_cache(4, 64)
            hidden = decoder.forward(TokenBatch(rows, cache), cache, draft)
            # A second pass reads what the first one left in the cache.
            hidden = decoder.forward(TokenBatch([(0, 23, [8, 9, 10]), (3, 9, [11])], cache), cache, draft)
            states.append((hidden.float(), decoder.logits(hidden)))
        for mine, other, reference in zip(*states, strict=True):
            if dtype == torch.float32:
                torch.testing.assert_close(mine, reference, rtol=2e-4, atol=2e-4)
            else:
                assert error(mine, reference) <= 1.2 * error(other, reference)


@pytest.mark.parametrize(
    ("dtype", "kind", "activations"),
    [
        (torch.float32, None, "auto"),
        (torch.bfloat16, None, "auto"),
        *((torch.bfloat16, kind, activations) for kind in FORMATS for activations in ("int8", "fine", "exact")),
    ],
)
@torch.inference_mode()
def test_a_row_gives_the_same_bits_alone_and_among_others(
    build: str, dtype: torch.dtype, kind: Type | None, activations: Activations, tmp_path: Path
) -> None:
    """What makes speculation lossless: verifying many tokens equals decoding them one by one."""
    shape = {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 262}
    # What comes after whole tiles of 32 inputs has a tile of its own.
    shape |= {} if kind else {"hidden_size": 40}
    model = Decoder(a_checkpoint(tmp_path, shape, dtype, kind), activations)
    ids = torch.randint(6, 262, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    cache, other = model.new_cache(3, 64), model.new_cache(3, 64)
    for cached in (cache, other):
        model.forward(TokenBatch([(1, 0, ids[:20]), (2, 0, ids[5:9])], cached), cached)
    one_by_one = [model.forward(TokenBatch([(1, 20 + i, [ids[20 + i]])], cache), cache) for i in range(20)]
    for width in (2, 3, 5, 7, 13, 20):
        batch = TokenBatch([(1, 20, ids[20 : 20 + width]), (2, 4, ids[:3])], other)
        together = model.forward(batch, other)
        assert torch.equal(together[:width], torch.cat(one_by_one[:width]))
        assert torch.equal(model.logits(together)[:width], torch.cat([model.logits(h) for h in one_by_one[:width]]))


@pytest.mark.parametrize(("confidence", "floor"), [(0.0, 0.0), (0.05, 0.0), (0.5, 0.0), (0.0, 0.01), (0.0, 0.5)])
@torch.inference_mode()
def test_a_draft_chain_is_the_greedy_loop(confidence: float, floor: float, tmp_path: Path) -> None:
    """Token by token: each row goes on while it is sure, up to its own limit."""
    model = Decoder(load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU))
    assert model.native is not None
    draft, limits = DraftModel(SkipMask(frozenset({1}), frozenset({2})), floor=floor), [5, 0, 2]
    cache = model.new_cache(3, 64)
    starts = started_batch(model, cache)
    expected = greedy_chains(model, draft, model, cache, starts, limits, confidence)
    assert model.native.draft(starts, cache, draft, limits, confidence) == expected


@pytest.mark.parametrize("start", [0, 2])
@torch.inference_mode()
def test_a_patch_takes_the_place_of_the_last_layers_and_norm(start: int, tmp_path: Path) -> None:
    """Of kernels and torch alike: a token's state from what reaches the patch and the state of the token before."""
    native, plain = decoders(save_random_model(tmp_path, tiny_config(head_dim=16)), torch.float32)
    patch, size = random_patch(native, start), native.config.hidden_size
    rest = SkipMask(*[frozenset(range(start, native.config.num_layers))] * 2)
    for decoder in (native, plain):
        for count in (3, 12):
            cache = decoder.new_cache(1, 64)
            batch = TokenBatch([(0, 0, list(range(6, 6 + count)))], cache)
            states = torch.randn(count, size, generator=torch.Generator().manual_seed(1))
            reached = decoder.forward(batch, cache, DraftModel(rest))
            inputs = torch.cat((reached, states), 1)
            if decoder is native and kernels.kernel_build().endswith(("bf16", "amx")):
                # This build multiplies bf16 by bf16.
                inputs = inputs.bfloat16().float()
            expected = inputs @ patch.weight.T + patch.bias
            hidden = decoder.forward(batch, cache, DraftModel(patch=patch), states)
            torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("confidence", [0.0, 0.05, 0.5])
@torch.inference_mode()
def test_a_patched_chain_hands_its_states_on(confidence: float, tmp_path: Path) -> None:
    model = Decoder(load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU))
    assert model.native is not None
    draft, limits = DraftModel(patch=random_patch(model, 1)), [5, 0, 2]
    cache = model.new_cache(3, 64)
    starts = started_batch(model, cache)
    states = torch.randn(3, model.config.hidden_size, generator=torch.Generator().manual_seed(1))
    expected = greedy_chains(model, draft, model, cache, starts, limits, confidence, states)
    assert model.native.draft(starts, cache, draft, limits, confidence, None, states) == expected
    others = greedy_chains(model, draft, model, cache, starts, limits, 0.0, -states)
    assert others != greedy_chains(model, draft, model, cache, starts, limits, 0.0, states)


@torch.inference_mode()
def test_greedy_tokens_are_those_of_the_logits(model: Decoder, tmp_path: Path) -> None:
    native = Decoder(load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU))
    for decoder in (model, native):
        cache = decoder.new_cache(1, 64)
        batch = TokenBatch([(0, 0, list(range(6, 40)))], cache)
        tokens, states, logits = decoder.greedy(batch, cache)
        expected = decoder.forward(batch, cache)
        assert tokens == decoder.logits(expected).argmax(-1).tolist()
        torch.testing.assert_close(states, expected)
        assert torch.equal(logits[: len(tokens)], decoder.logits(states))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads of decoders that are made; it is as before afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_gives_the_same_tokens(
    build: str, dtype: torch.dtype, threads: Callable[[int], None], tmp_path: Path
) -> None:
    """Also more than there are processors, and more than there are parts of the work."""
    folder = save_random_model(tmp_path, tiny_config(head_dim=16))
    requests = [GenerationRequest([7 + i, 8, 9], SamplingParams(0.0), StopConditions(20)) for i in range(3)]
    texts = []
    for num_threads in (1, 2, 3, 16, 8 * len(os.sched_getaffinity(0)) + 1):
        threads(num_threads)
        engine = Engine(Decoder(load_checkpoint(str(folder), dtype, CPU)), EngineConfig(max_batch=3, method="plain"))
        texts.append([sequence.output_ids for sequence in engine.generate(requests)])
    assert all(text == texts[0] for text in texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_threads_that_share_the_heads_of_a_long_text_give_the_same_bits(
    build: str, dtype: torch.dtype, threads: Callable[[int], None], tmp_path: Path
) -> None:
    """Three heads of keys, which two, four and five threads cannot deal out evenly; in fp32 torch agrees."""
    config = tiny_config(max_position_embeddings=1024, num_attention_heads=6, num_key_value_heads=3, hidden_size=96)
    folder = save_random_model(tmp_path, config)
    ids = torch.randint(3, 262, (620,), generator=torch.Generator().manual_seed(1)).tolist()
    found = []
    for num_threads in (1, 2, 4, 5):
        threads(num_threads)
        native, plain = decoders(folder, dtype)
        cache = native.new_cache(3, 640)
        whole = native.forward(TokenBatch([(1, 0, ids)], cache), cache)[-9:]
        rows = [native.forward(TokenBatch([(1, 611 + i, ids[611 + i : 612 + i])], cache), cache) for i in range(9)]
        assert torch.equal(torch.cat(rows), whole)
        found.append(whole)
    assert all(torch.equal(each, found[0]) for each in found)
    if dtype == torch.float32:
        cache = plain.new_cache(1, 640)
        expected = plain.forward(TokenBatch([(0, 0, ids)], cache), cache)[-9:]
        torch.testing.assert_close(found[0], expected, rtol=2e-4, atol=2e-4)


@torch.inference_mode()
def test_a_decoders_threads_end_with_it(threads: Callable[[int], None], tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(save_random_model(tmp_path, tiny_config(head_dim=16))), torch.float32, CPU)

    def running() -> set[str]:
        return {task.name for task in Path("/proc/self/task").iterdir()}

    threads(7)
    for num_passes in (0, 1, 5):
        others = running()
        model = Decoder(checkpoint)
        cache = model.new_cache(1, 64)
        for position in range(num_passes):
            model.greedy(TokenBatch([(0, position, [9])], cache), cache)
        own = running() - others
        assert len(own) >= 6
        del model
        assert not own & running()
