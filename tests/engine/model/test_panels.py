"""The panel layout of the CPU kernels holds exactly the weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine.config import LANES
from server.engine.model.arena import CHUNK, LINE, Arena
from server.engine.model.panels import BLOCK, Panels, pack
from server.engine.model.quantization.codes import Codes


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_panels_hold_the_weight_and_zeros(out_features: int, pairs: int, dtype: torch.dtype) -> None:
    weight = torch.randn(out_features, 2 * pairs).to(dtype)
    panels = pack(weight).weights
    assert panels.is_contiguous()
    assert panels.shape[0] == -(-out_features // LANES)
    rows = panels.transpose(1, 2).reshape(-1, 2 * pairs)
    assert torch.equal(rows[:out_features], weight)
    assert not rows[out_features:].any()


def test_the_layout_is_the_one_that_the_kernels_read() -> None:
    weight = torch.arange(32 * 4, dtype=torch.float32).view(32, 4)
    panels = pack(weight).weights
    assert panels.shape == (2, 4, LANES)
    assert panels[1, 2, 5] == weight[16 + 5, 2]
    paired = pack(weight.bfloat16()).weights
    assert paired.shape == (2, 2, LANES, 2)
    assert paired[1, 1, 5, 0] == weight[16 + 5, 2]


def code_at(panels: Panels, output: int, position: int) -> int:
    """One code, found as `native/codes.hpp` says where it is."""
    block = panels.weights[output // LANES, position // BLOCK].tolist()
    quad, byte = position % BLOCK // 4, 4 * (output % LANES) + position % 4
    if panels.bits == 8:
        return int(block[64 * quad + byte])
    code = block[64 * (quad % 4) + byte] >> 4 * (quad // 4) & 15
    for bit in range(4, panels.bits):
        plane = block[256 + 64 * (bit - 4) :]
        code |= (plane[8 * quad + byte // 8] >> byte % 8 & 1) << bit
    return int(code)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from([4, 5, 6, 8]))
def test_code_panels_hold_every_code(outputs: int, blocks: int, bits: int) -> None:
    codes = torch.randint(0, 2**bits, (outputs, BLOCK * blocks), dtype=torch.uint8)
    scales = torch.randn(outputs, blocks).half()
    panels = pack(Codes(bits, BLOCK, codes, scales, zero=3))
    assert panels.weights.shape == (-(-outputs // LANES), blocks, 512 if bits == 8 else 256 + 64 * (bits - 4))
    found = [[code_at(panels, i, j) for j in range(BLOCK * blocks)] for i in range(outputs)]
    assert torch.equal(torch.tensor(found, dtype=torch.uint8), codes)
    assert panels.scales is not None
    assert torch.equal(panels.scales.transpose(1, 2).reshape(-1, blocks)[:outputs], scales)


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_bias_is_padded_to_whole_panels(has_bias: bool) -> None:
    bias = torch.randn(21) if has_bias else None
    padded = pack(torch.randn(21, 8), bias).bias
    if bias is None:
        assert padded is None
    else:
        assert padded is not None
        assert padded.tolist() == [*bias.tolist(), *[0.0] * 11]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=8))
def test_an_arena_keeps_every_tensor_apart_and_at_a_line(sizes: list[int]) -> None:
    arena = Arena()
    tensors = [torch.randint(0, 99, (size, 3), dtype=torch.int16) for size in sizes]
    placed = [arena.place(tensor) for tensor in tensors]
    assert all(torch.equal(copy, tensor) for copy, tensor in zip(placed, tensors, strict=True))
    assert all(copy.data_ptr() % LINE == 0 for copy in placed if copy.numel())


def test_an_arena_takes_a_chunk_of_its_own_for_what_is_larger() -> None:
    arena = Arena()
    small: Tensor = arena.place(torch.ones(3))
    large = arena.place(torch.full((CHUNK // 4 + 1,), 2.0))
    after = arena.place(torch.full((2,), 3.0))
    assert (small.tolist(), float(large[-1]), after.tolist()) == ([1.0] * 3, 2.0, [3.0, 3.0])
