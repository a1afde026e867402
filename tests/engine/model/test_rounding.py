"""Weights rounded to 8 and 4 bits: codes within range, errors within a step, and always finite numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from server.engine.model.quantization.rounding import GROUP, LARGEST, Bits, RoundedWeight, can_round, rounded

HALF = 2.0**-11
"""What a float16 is off by, as a share of it."""
TINY = 2.0**-24
"""The smallest float16."""

sizes = st.sampled_from([1e-30, 1e-8, 3e-7, 1e-5, 1e-3, 0.02, 1.0, 300.0])


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Normal numbers about a centre, [out, in], with a constant group, one of zeros, and one with an outlier."""
    outputs, groups = draw(st.integers(1, 20)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size, centre = draw(sizes), draw(st.sampled_from([0.0, 0.0, 1.0, -40.0]))
    weight = size * (torch.randn(outputs, groups, GROUP, generator=generator) + centre)
    for kind in draw(st.lists(st.sampled_from(["constant", "zeros", "outlier", "whole"]), max_size=3)):
        group = weight[draw(st.integers(0, outputs - 1)), draw(st.integers(0, groups - 1))]
        if kind == "constant":
            group[:] = size
        elif kind == "zeros":
            group[:] = 0
        elif kind == "outlier":
            group[draw(st.integers(0, GROUP - 1))] = -100 * size
        else:
            group[:] = (group / size).round() * size
    rows: Tensor = weight.flatten(1)
    return rows


def grouped(weight: Tensor) -> Tensor:
    groups: Tensor = weight.unflatten(1, (-1, GROUP)).double()
    return groups


def min_max(weight: Tensor) -> Tensor:
    """16 even steps from a group's lowest to its highest number, in double precision."""
    groups = grouped(weight)
    low, high = groups.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 15
    return low + step * ((groups - low) / torch.where(step == 0, 1, step)).round()


@settings(deadline=None, max_examples=150)
@given(weights())
def test_eight_bits_are_off_by_half_a_step_at_most(weight: Tensor) -> None:
    codes = rounded(weight, 8)
    assert (codes.bits, codes.group, codes.zero, codes.minima) == (8, GROUP, 128, None)
    assert codes.codes.dtype == torch.uint8
    assert codes.codes.min() >= 1
    assert codes.scales.shape == (weight.shape[0], weight.shape[1] // GROUP)
    largest = grouped(weight).abs().amax(-1, keepdim=True)
    allowed = largest / 127 / 2 + largest * HALF + 127 * TINY / 2
    assert ((grouped(codes.dense()) - grouped(weight)).abs() <= allowed).all()


@settings(deadline=None, max_examples=150)
@given(weights())
def test_four_bits_are_no_worse_than_even_steps_from_lowest_to_highest(weight: Tensor) -> None:
    codes = rounded(weight, 4)
    assert (codes.bits, codes.group, codes.zero) == (4, GROUP, 0)
    assert codes.codes.max() <= 15
    largest = grouped(weight).abs().amax(-1)
    error = (grouped(codes.dense()) - grouped(weight)).square().mean(-1).sqrt()
    even = (min_max(weight) - grouped(weight)).square().mean(-1).sqrt()
    assert (error <= even + largest * HALF + 15 * TINY).all()


def test_four_bits_are_better_than_even_steps_where_weights_are_normal() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    error = (grouped(rounded(weight, 4).dense()) - grouped(weight)).square().mean()
    assert error < 0.9 * (min_max(weight) - grouped(weight)).square().mean()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.375, 1024.0, LARGEST])
def test_a_constant_group_and_one_of_zeros_stay_as_they_are(bits: Bits, value: float) -> None:
    weight = torch.full((3, 2 * GROUP), value)
    weight[1] = 0
    dense = rounded(weight, bits).dense()
    assert torch.allclose(dense, weight, rtol=HALF, atol=0)
    assert not dense[1].any()


@settings(deadline=None, max_examples=60)
@given(weights(), st.floats(3, 38), st.sampled_from([4, 8]))
def test_finite_weights_stay_finite(weight: Tensor, exponent: float, bits: Bits) -> None:
    """Scales are float16, which ends at 65504; larger weights are clipped to what they hold."""
    large = (weight * 10**exponent).clamp(-3e38, 3e38)
    dense = rounded(large, bits).dense()
    assert dense.isfinite().all()
    limit = LARGEST if bits == 4 else 127 * LARGEST
    clipped = large.clamp(-limit, limit)
    step = 2 * clipped.abs().max() / (15 if bits == 4 else 254)
    assert (dense - clipped).abs().max() <= 2 * step + 127 * TINY


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("bits", [4, 8])
def test_weights_of_any_precision_are_rounded_from_their_own_values(bits: Bits, dtype: torch.dtype) -> None:
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    found, expected = rounded(weight, bits), rounded(weight.float(), bits)
    assert torch.equal(found.codes, expected.codes)
    assert torch.equal(found.dense(), expected.dense())


def test_rows_in_another_order_of_memory_are_the_same() -> None:
    weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(2)).T
    assert torch.equal(rounded(weight, 4).dense(), rounded(weight.contiguous(), 4).dense())


def test_a_weight_may_be_larger_than_what_is_rounded_at_a_time() -> None:
    weight = torch.randn(20, 1 << 15, generator=torch.Generator().manual_seed(3))
    for bits in (4, 8):
        whole = rounded(weight, bits).dense()
        assert torch.equal(whole, torch.cat([rounded(row[None], bits).dense() for row in weight]))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 32), True), ((1, 96), True), ((4, 48), False), ((4, 31), False), ((64,), False), ((2, 2, 32), False)],
)
def test_matrices_of_whole_groups_can_be_rounded(shape: tuple[int, ...], expected: bool) -> None:
    assert can_round(torch.zeros(shape)) == expected


def test_what_is_rounded_can_be_rounded_again() -> None:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(4))
    once = RoundedWeight(weight, 8)
    twice = RoundedWeight(once, 4)
    assert (once.kind, twice.kind, twice.shape) == ("int8", "int4", weight.shape)
    assert can_round(twice)
    assert torch.equal(twice.dense(), rounded(once.dense(), 4).dense())
