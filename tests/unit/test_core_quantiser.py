"""The quantiser: bits go where they help most, and packing loses nothing that rounding kept."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cmt_core.errors import ConfigError, MemoryFormatError
from cmt_core.memory.quantiser import MAX_BITS, Quantiser, share_bits


@st.composite
def bits_and_levels(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bits a component, in whole bytes a token, and levels (T, C) in range; components of no bits are among them."""
    bits = draw(st.lists(st.integers(0, MAX_BITS), min_size=1, max_size=12))
    for _ in range(-sum(bits) % 8 if sum(bits) else 8):
        bits.append(1)
    T = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    columns = [rng.integers(-(2 ** (b - 1)), 2 ** (b - 1), T) if b else np.zeros(T, dtype=np.int64) for b in bits]
    return np.array(bits), np.stack(columns, axis=1)


@given(bits_and_levels())
def test_unpacking_gives_back_the_packed_levels(case: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    bits, levels = case
    quantiser = Quantiser(bits, torch.ones(len(bits)))
    packed = quantiser.pack(levels)
    assert len(packed) == len(levels) * int(bits.sum()) // 8
    np.testing.assert_array_equal(quantiser.unpack(packed), levels)
    assert quantiser.packed(torch.from_numpy(levels).float()).numpy().tobytes() == packed  # as a GPU packs them


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=4).flatmap(
        lambda v: st.tuples(st.just(v), st.integers(0, min(9, MAX_BITS * len(v))))
    )
)
def test_greedy_sharing_is_as_good_as_the_best_of_all(case: tuple[list[float], int]) -> None:
    variance, total = np.array(case[0]), case[1]
    bits = share_bits(variance, total)
    ways = itertools.product(range(min(total, MAX_BITS) + 1), repeat=len(variance))
    best = min(float((variance / 4.0 ** np.array(way)).sum()) for way in ways if sum(way) == total)
    assert int(bits.sum()) == total
    assert bits.max(initial=0) <= MAX_BITS
    assert float((variance / 4.0**bits).sum()) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_no_component_gets_more_than_eight_bits() -> None:
    assert share_bits(np.array([1e9, 1e-9]), 12).tolist() == [8, 4]


def test_more_bits_than_components_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="2 components can't hold 17 bits"):
        share_bits(np.ones(2), 17)


def test_rounding_is_within_half_a_step_inside_the_range() -> None:
    quantiser = Quantiser(np.array([4, 8]), torch.tensor([0.5, 0.1]))
    z = torch.stack([torch.linspace(-3.9, 3.9, 101), torch.linspace(-12.7, 12.7, 101)], dim=1)
    assert ((quantiser.round(z) - z).abs() <= quantiser.steps / 2 + 1e-5).all()


def test_values_beyond_the_range_are_clamped_to_the_outermost_level() -> None:
    quantiser = Quantiser(np.array([2, 6]), torch.tensor([1.0, 1.0]))
    assert quantiser.levels(torch.tensor([[9.0, -99.0]])).tolist() == [[1.0, -32.0]]


def test_component_without_bits_is_always_zero() -> None:
    quantiser = Quantiser.fit(np.array([5.0, 0.0]), 8)
    assert quantiser.bits.tolist() == [8, 0]
    rounded = quantiser.round(torch.tensor([[1.0, 3.0], [1.0, 0.0]]))
    assert torch.isfinite(rounded).all()
    assert rounded[:, 1].tolist() == [0.0, 0.0]


def test_gradient_passes_straight_through_rounding() -> None:
    quantiser = Quantiser(np.array([0, 3, 5]), torch.tensor([1.0, 0.5, 0.1]))
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.arange(12.0).view(4, 3)
    (gradient,) = torch.autograd.grad((quantiser.round(z) * weight).sum(), z)
    assert torch.equal(gradient, weight)


def test_more_bits_leave_less_error() -> None:
    sigma = np.array([3.0, 1.0, 0.3, 0.1])
    z = torch.randn(2000, 4, generator=torch.Generator().manual_seed(1)) * torch.from_numpy(sigma).float()
    errors = [float((Quantiser.fit(sigma, bits).round(z) - z).square().mean()) for bits in (8, 16, 24)]
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


@pytest.mark.parametrize("size", [1, 5, 7])
def test_bytes_that_are_no_whole_rows_are_refused(size: int) -> None:
    quantiser = Quantiser(np.array([8, 8, 8]), torch.ones(3))
    with pytest.raises(MemoryFormatError, match=f"{size} bytes is no multiple of 3"):
        quantiser.unpack(bytes(size))
