"""The generalised Gaussian against reference values computed without scipy, and its integer tables."""

from __future__ import annotations

import math

import pytest
import torch

from hpcm_codec.entropy.distributions import (
    SMALLEST_LIKELIHOOD,
    bounded,
    build_tables,
    likelihood,
    lower_bounded_likelihood,
    sigma_index,
    sigma_of,
)
from hpcm_codec.entropy.sigmas import LARGEST_SIGMA, SIGMA_COUNT, SMALLEST_SIGMA


def test_likelihoods_equal_the_integral_of_the_density() -> None:
    scale = 1.7
    v = torch.arange(-6, 7, dtype=torch.float64)
    steps = torch.linspace(-0.5, 0.5, 20001, dtype=torch.float64)
    grid = (v[:, None] + steps) / scale
    density = 1.5 / (2 * math.gamma(1 / 1.5)) * torch.exp(-grid.abs().pow(1.5)) / scale
    expected = torch.trapezoid(density, steps, dim=1)
    torch.testing.assert_close(likelihood(v, torch.full_like(v, scale)), expected, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", [0.12, 1.0, 64.0])
def test_likelihoods_of_all_integers_add_up_to_one(scale: float) -> None:
    v = torch.arange(-2000, 2001, dtype=torch.float64)
    assert float(likelihood(v, torch.full_like(v, scale)).sum()) == pytest.approx(1, abs=1e-12)


def test_likelihood_has_the_right_gradients() -> None:
    v = torch.tensor([-3.2, -0.4, 0.1, 0.5, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.5, 1.0, 2.0, 0.3, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(likelihood, (v, scale))


def test_float32_likelihoods_keep_their_digits_in_the_tail() -> None:
    v, scale = torch.tensor([6.0]), torch.tensor([1.0])
    expected = likelihood(v.double(), scale.double())
    torch.testing.assert_close(likelihood(v, scale).double(), expected, rtol=1e-3, atol=0)


def test_the_lower_bound_lets_through_what_would_raise_the_value() -> None:
    scale = torch.tensor([0.12], requires_grad=True)
    (-lower_bounded_likelihood(torch.tensor([1.2]), scale).log2()).sum().backward()
    assert scale.grad is not None and scale.grad < 0  # a larger scale makes the symbol cheaper
    assert lower_bounded_likelihood(torch.tensor([99.0]), torch.tensor([0.12])) == pytest.approx(SMALLEST_LIKELIHOOD)


@pytest.mark.parametrize(("x", "gradient", "passes"), [(-1, 1, False), (-1, -1, True), (9, -1, False), (9, 1, True)])
def test_bounds_block_only_gradients_that_lead_further_out(x: float, gradient: float, passes: bool) -> None:
    value = torch.tensor([float(x)], requires_grad=True)
    bounded(value, 0.0, 5.0).backward(torch.tensor([float(gradient)]))
    assert value.grad is not None and bool(value.grad != 0) == passes


def test_scale_levels_are_their_own_nearest() -> None:
    levels = torch.arange(SIGMA_COUNT)
    assert sigma_of(levels)[0] == pytest.approx(SMALLEST_SIGMA)
    assert sigma_of(levels)[-1] == pytest.approx(LARGEST_SIGMA)
    assert torch.equal(sigma_index(sigma_of(levels)), levels.int())
    assert sigma_index(torch.tensor([1e-9, 1e9])).tolist() == [0, SIGMA_COUNT - 1]


def test_tables_are_whole_and_close_to_the_distribution() -> None:
    tables = build_tables()
    for level in range(SIGMA_COUNT):
        row = tables.cumulative[level, : tables.sizes[level]].long()
        assert row[0] == 0 and row[-1] == 2**16
        frequencies = row.diff()
        assert frequencies.min() >= 1
        symbols = torch.arange(len(frequencies) - 1, dtype=torch.float64) + tables.offsets[level]
        exact = likelihood(symbols, sigma_of(torch.tensor([level])).expand_as(symbols))
        coded = frequencies[:-1] / 2**16
        overhead = float((exact * (exact / coded).log2()).sum())
        assert overhead < 0.01, f"level {level} costs {overhead} bits a symbol too much"


def test_tables_are_the_same_every_time() -> None:
    assert torch.equal(build_tables().cumulative, build_tables().cumulative)
