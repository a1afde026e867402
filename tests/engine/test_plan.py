"""The memory plan: arithmetic over the shapes of real models, and what is said where they do not fit."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from server.engine import DecoderConfig, EngineConfig, MemoryPlan, MemoryPlanError, Outline, Wishes, plan_memory
from server.engine.kvcache.budget import position_bytes
from server.engine.kvcache.cache import BLOCK_LENGTH
from server.engine.model import kernels

GB = 1_000_000_000
LLAMA = DecoderConfig(32, 4096, 14336, 32, 8, 128, 128256, 131072, 1e-5)
QWEN = DecoderConfig(28, 3584, 18944, 28, 4, 128, 152064, 32768, 1e-6)
SMOL = DecoderConfig(30, 576, 1536, 9, 3, 64, 49152, 8192, 1e-5)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")

Plan = Callable[..., MemoryPlan]


@pytest.fixture(autouse=True)
def with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that has them, whatever this one is."""
    monkeypatch.setattr(kernels, "is_supported", lambda config, dtype, device: device.type == "cpu")


def outline(config: DecoderConfig, device: torch.device = CPU, bits: float | None = None) -> Outline:
    names = config.weight_shapes if bits else ()
    few_bits = dict.fromkeys(names, bits) if bits else {}
    return Outline(config, torch.bfloat16, device, config is SMOL, False, few_bits)


def plan(
    model: Outline, available: float, wishes: Wishes | None = None, draft_bytes: int = 0, **config: int
) -> MemoryPlan:
    return plan_memory(model, draft_bytes, EngineConfig(**config), wishes or Wishes(), round(available))  # type: ignore[arg-type]


def test_weights_are_counted_to_a_thousandth() -> None:
    assert outline(LLAMA).weight_bytes == pytest.approx(16.06 * GB, rel=1e-3)
    assert outline(QWEN).weight_bytes == pytest.approx(15.23 * GB, rel=1e-3)
    assert outline(SMOL).num_weights == pytest.approx(134.5e6, rel=1e-3)
    rounded = replace(outline(LLAMA), rounded=4)
    assert rounded.weight_bytes == pytest.approx(8.03 * GB * 5 / 8, rel=1e-2)
    assert rounded.copy_bytes("auto") == 0, "a copy of as many bits saves nothing"
    assert outline(LLAMA).copy_bytes("auto") == pytest.approx(7.5 * GB * 5 / 8, rel=1e-2)
    assert outline(LLAMA).copy_bytes("int8") == pytest.approx(7.5 * GB * 8.5 / 8, rel=1e-2)
    assert outline(LLAMA, CUDA).copy_bytes("int8") == 0
    assert replace(outline(LLAMA, CUDA), rounded=4).weight_bytes == outline(LLAMA).weight_bytes, "torch dequantises"


@pytest.mark.parametrize(
    ("config", "bits", "gigabytes", "expected"),
    [
        (LLAMA, 4.625, 8, (6144, 12)),
        (LLAMA, 4.625, 16, (25600, 53)),
        (LLAMA, 4.625, 24, (46080, 93)),
        (LLAMA, None, 24, (17408, 35)),
        (LLAMA, None, 80, (131072, 320)),
        (QWEN, 4.625, 8, (13312, 27)),
        (QWEN, 4.625, 16, (32768, 111)),
        (QWEN, 4.625, 24, (32768, 195)),
        (QWEN, None, 24, (32768, 81)),
        (QWEN, None, 80, (32768, 262)),
        (SMOL, 5.0, 8, (8192, 65)),
    ],
)
def test_the_context_and_all_contexts_follow_from_the_memory(
    config: DecoderConfig, bits: float | None, gigabytes: int, expected: tuple[int, int]
) -> None:
    """The longest context, and thousands of tokens of all together."""
    found = plan(outline(config, bits=bits), gigabytes * GB)
    assert (found.max_length, found.num_tokens // 1000, found.num_slots) == (*expected, 8)
    assert found.needed <= gigabytes * GB
    assert found.cache == (found.num_tokens + BLOCK_LENGTH) * position_bytes(config, torch.bfloat16)


@pytest.mark.parametrize("config", [LLAMA, QWEN])
@pytest.mark.parametrize("gigabytes", [8, 16])
def test_weights_that_do_not_fit_are_refused_with_the_numbers(config: DecoderConfig, gigabytes: int) -> None:
    with pytest.raises(MemoryPlanError) as caught:
        plan(outline(config), gigabytes * GB, draft_bytes=4 * GB)
    message = str(caught.value)
    weights = f"weights ({outline(config).weight_bytes / 1e6:,.0f} MB), draft weights (4,000 MB)"
    assert weights in message and f"of {gigabytes * 1000:,} MB memory do not fit" in message
    assert "use --draft-weights none, --quantization int8 or int4, a smaller model or more memory" in message
    with pytest.raises(MemoryPlanError, match="do not fit: use a smaller model or more memory"):
        plan(outline(config, bits=4.625), 4 * GB)


def test_numbers_of_another_type_than_the_files_are_counted_while_loading() -> None:
    assert plan(outline(LLAMA), 32 * GB).num_slots == 8
    with pytest.raises(MemoryPlanError, match=r"scratch \(890 MB, 18,662 MB while loading\)"):
        plan(replace(outline(LLAMA), is_converted=True), 32 * GB)
    assert plan(replace(outline(LLAMA, CUDA), is_converted=True), 24 * GB).num_slots == 8, "the CPU has them"


def test_what_is_chosen_is_kept_or_refused_with_what_would_fit() -> None:
    model, available = outline(LLAMA, bits=4.625), 16 * GB
    found = plan(model, available, Wishes(2, 8192))
    assert (found.num_slots, found.max_length, found.num_tokens) == (2, 8192, 16384)
    found = plan(model, available, Wishes(8, 32768))
    assert (found.num_slots, found.max_length) == (8, 32768) and found.num_tokens < 2 * 32768, "they share"
    with pytest.raises(MemoryPlanError) as caught:
        plan(model, available, Wishes(8, 131072))
    message = str(caught.value)
    assert "keys and values of a context of 131,072 tokens take 19,332 MB" in message
    length = int(message.split("use --max-length ")[1].split()[0])
    assert plan(model, available, Wishes(8, length)).max_length == length
    with pytest.raises(MemoryPlanError):
        plan(model, available, Wishes(8, length + BLOCK_LENGTH))


def test_cache_memory_bounds_the_cache() -> None:
    model, available = outline(LLAMA, bits=4.625), 16 * GB
    found = plan(model, available, Wishes(cache_bytes=2 * GB))
    assert found.cache <= 2 * GB and (found.num_slots, found.max_length, found.num_tokens) == (8, 6144, 13504)
    small = plan(outline(SMOL), 8 * GB, Wishes(num_slots=1, cache_bytes=GB))
    assert small.num_tokens > 4 * small.max_length, "what is given beyond the slots' contexts keeps texts of the past"
    with pytest.raises(MemoryPlanError, match="--cache-memory of 12,000 MB does not fit"):
        plan(model, available, Wishes(cache_bytes=12 * GB))
    with pytest.raises(MemoryPlanError, match="or a larger --cache-memory"):
        plan(model, available, Wishes(8, 16384, 2 * GB))


def test_the_log_says_the_plan() -> None:
    line = str(plan(outline(SMOL, bits=5.0), 8 * GB))
    assert line.startswith(
        "weights 84 MB, draft weights 0 MB, cache 1,662 MB (65,536 tokens, 8 slots of up to 8,192), scratch "
    )
    assert line.endswith(", of 8,000 MB")
    assert "(64 tokens, 1 slot of up to 64)" in str(plan(outline(SMOL), 8 * GB, Wishes(1, 64)))


@given(
    st.sampled_from([LLAMA, QWEN, SMOL]),
    st.sampled_from([None, 4.625, 8.5]),
    st.floats(0.1, 200),
    st.none() | st.integers(1, 64),
    st.none() | st.integers(2, 200_000),
    st.none() | st.integers(1, 100 * GB),
)
def test_a_plan_always_fits_and_keeps_what_was_chosen(
    config: DecoderConfig,
    bits: float | None,
    gigabytes: float,
    num_slots: int | None,
    max_length: int | None,
    cache: int | None,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "is_supported", lambda config, dtype, device: True)
        try:
            found = plan(outline(config, bits=bits), gigabytes * GB, Wishes(num_slots, max_length, cache))
        except MemoryPlanError as error:
            assert "MB" in str(error) and "\n" not in str(error)
            return
    assert found.needed <= found.available
    assert num_slots in (None, found.num_slots)
    assert max_length is None or found.max_length == min(max_length, config.max_length)
    assert cache is None or found.cache <= cache
