"""The panel layout of the CPU kernels holds exactly the weight, and its product is the plain one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.linear import LANES, Linear, pack, unpack


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 70), st.integers(1, 20), st.sampled_from([torch.float32, torch.bfloat16]))
def test_unpacking_gives_the_weight_back(out_features: int, pairs: int, dtype: torch.dtype) -> None:
    weight = torch.randn(out_features, 2 * pairs).to(dtype)
    panels = pack(weight)
    assert panels.is_contiguous()
    assert panels.shape[0] == -(-out_features // LANES)
    assert torch.equal(unpack(panels, out_features), weight)


def test_the_layout_is_the_one_that_the_kernels_read() -> None:
    weight = torch.arange(32 * 4, dtype=torch.float32).view(32, 4)
    panels = pack(weight)
    assert panels.shape == (2, 4, LANES)
    assert panels[1, 2, 5] == weight[16 + 5, 2]
    paired = pack(weight.bfloat16())
    assert paired.shape == (2, 2, LANES, 2)
    assert paired[1, 1, 5, 0] == weight[16 + 5, 2]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_the_product_does_not_depend_on_the_layout(is_packed: bool, has_bias: bool) -> None:
    weight, x = torch.randn(21, 8), torch.randn(3, 8)
    bias = torch.randn(21) if has_bias else None
    linear = Linear(weight, bias, is_packed)
    torch.testing.assert_close(linear(x), F.linear(x, weight, bias))
    if bias is None:
        assert linear.padded_bias is None
    else:
        assert linear.padded_bias is not None
        assert linear.padded_bias.tolist() == [*bias.tolist(), *[0.0] * 11]
