"""The panel layout of the CPU kernels holds exactly the weight, and its product is the plain one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.config import LANES
from server.engine.model.linear import Linear, pack


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_panels_hold_the_weight_and_zeros(out_features: int, pairs: int, dtype: torch.dtype) -> None:
    weight = torch.randn(out_features, 2 * pairs).to(dtype)
    panels = pack(weight)
    assert panels.is_contiguous()
    assert panels.shape[0] == -(-out_features // LANES)
    rows = panels.transpose(1, 2).reshape(-1, 2 * pairs)
    assert torch.equal(rows[:out_features], weight)
    assert not rows[out_features:].any()


def test_the_layout_is_the_one_that_the_kernels_read() -> None:
    weight = torch.arange(32 * 4, dtype=torch.float32).view(32, 4)
    panels = pack(weight)
    assert panels.shape == (2, 4, LANES)
    assert panels[1, 2, 5] == weight[16 + 5, 2]
    paired = pack(weight.bfloat16())
    assert paired.shape == (2, 2, LANES, 2)
    assert paired[1, 1, 5, 0] == weight[16 + 5, 2]


@pytest.mark.parametrize("has_bias", [False, True])
def test_the_product_and_the_padded_bias(has_bias: bool) -> None:
    weight, x = torch.randn(21, 8), torch.randn(3, 8)
    bias = torch.randn(21) if has_bias else None
    linear = Linear(weight, bias, is_packed=False)
    torch.testing.assert_close(linear(x), F.linear(x, weight, bias))
    if bias is None:
        assert linear.padded_bias is None
    else:
        assert linear.padded_bias is not None
        assert linear.padded_bias.tolist() == [*bias.tolist(), *[0.0] * 11]
