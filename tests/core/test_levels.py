"""Noise levels against their formulas in plain Python arithmetic."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from tract.levels import Level, broadcast, cosine, ddpm_linear, karras

GRIDS = {"cosine": cosine, "karras": karras, "ddpm_linear": ddpm_linear}


@pytest.mark.parametrize("num_steps", [1, 4, 1024])
def test_cosine_levels_are_cosine_and_sine_of_an_angle(num_steps):
    # logsnr = -2 ln tan(angle) means snr = 1 / tan^2(angle) and so alpha = cos, sigma = sin.
    levels = cosine(num_steps)
    b = math.atan(math.exp(-10))
    a = math.atan(math.exp(10)) - b
    angles = [a * i / num_steps + b for i in range(num_steps + 1)]
    # A rounding of the angle, 2e-16, is 5e-12 of alpha = 4.5e-5 at the noisy end.
    assert levels.alpha.tolist() == pytest.approx([math.cos(x) for x in angles], rel=1e-10, abs=0)
    assert levels.sigma.tolist() == pytest.approx([math.sin(x) for x in angles], rel=1e-10, abs=0)


@pytest.mark.parametrize("logsnr_max", [20.0, 12.0])
def test_cosine_ends_at_the_log_snr_limits(logsnr_max):
    logsnr = cosine(8, logsnr_max).logsnr
    assert logsnr[0].item() == pytest.approx(logsnr_max, abs=1e-10)
    assert logsnr[-1].item() == pytest.approx(-logsnr_max, abs=1e-10)


@pytest.mark.parametrize("make", [cosine, ddpm_linear])
def test_vp_levels_preserve_variance(make):
    levels = make(1000)
    # Two squares and a sum: a few roundings of 1.1e-16.
    assert (levels.alpha**2 + levels.sigma**2 - 1).abs().max() < 1e-15


def test_karras_levels_follow_edm_equation_5():
    sigma_min, sigma_max, rho = 0.002, 80.0, 7.0
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    expected = [0.0] + [(low + i / 39 * (high - low)) ** rho for i in range(40)]
    levels = karras()
    # Seven powers of a number with a few roundings of 1.1e-16.
    assert levels.sigma.tolist() == pytest.approx(expected, rel=1e-13, abs=0)
    assert levels.alpha.tolist() == [1.0] * 41


def test_karras_spans_the_range_it_is_given():
    sigma = karras(5, sigma_min=0.1, sigma_max=10.0, rho=3.0).sigma
    assert sigma[1].item() == pytest.approx(0.1, rel=1e-13)
    middle = (0.1 ** (1 / 3) + 10.0 ** (1 / 3)) / 2
    assert sigma[3].item() == pytest.approx(middle**3, rel=1e-13)
    assert sigma[-1].item() == pytest.approx(10.0, rel=1e-13)


def test_ddpm_levels_are_the_product_of_one_minus_beta():
    levels = ddpm_linear(1000)
    betas = [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    for i in (0, 1, 2, 500, 1000):
        alpha_squared = math.prod(1 - beta for beta in betas[:i])
        # 1000 roundings of 1.1e-16 in the product.
        assert levels.alpha[i].item() ** 2 == pytest.approx(alpha_squared, rel=1e-12, abs=0)
    # beta_1 itself: 1 - alpha^2 would have lost four digits of it.
    assert levels.sigma[1].item() == pytest.approx(1e-2, rel=1e-14, abs=0)


def test_ddpm_levels_are_diffusers_grid_shifted_by_the_clean_level():
    alphas_cumprod = DDIMScheduler(1000, beta_start=1e-4, beta_end=0.02).alphas_cumprod
    ours = ddpm_linear(1000).alpha[1:] ** 2
    # theirs is a product of 1000 factors in float32, each rounded by at most 6e-8
    assert (ours / alphas_cumprod.double() - 1).abs().max() < 1000 * 2**-24


@pytest.mark.parametrize("make", GRIDS.values(), ids=GRIDS)
def test_a_grid_has_one_float64_level_more_than_steps_from_clean_to_noisy(make):
    levels = make(16)
    assert len(levels) == 17
    assert levels.num_steps == 16
    assert levels.alpha.dtype == levels.sigma.dtype == torch.float64
    assert bool((levels.sigma.diff() > 0).all())
    assert bool((levels.alpha.diff() <= 0).all())


@pytest.mark.parametrize("make", [karras, ddpm_linear])
def test_index_zero_of_these_grids_is_clean(make):
    assert make(16).sigma[0] == 0
    assert make(16).alpha[0] == 1


def test_snr_and_its_logarithm_are_those_of_alpha_and_sigma():
    level = Level(torch.tensor(0.6), torch.tensor(0.3))
    assert level.snr.item() == pytest.approx(4, rel=1e-6)
    assert level.logsnr.item() == pytest.approx(math.log(4), rel=1e-6)


def test_indexing_levels_picks_the_same_levels_of_both_coefficients():
    levels = karras(8)
    picked = levels[torch.tensor([8, 0, 3])]
    assert picked.sigma.tolist() == [levels.sigma[i].item() for i in (8, 0, 3)]
    assert picked.alpha.shape == (3,)
    assert levels[2].sigma.shape == ()


def test_levels_move_to_a_device_with_both_coefficients():
    moved = karras(8).to("meta")
    assert moved.alpha.is_meta
    assert moved.sigma.is_meta


def test_a_coefficient_multiplies_whole_samples_in_their_dtype():
    x = torch.ones(2, 3, 4, 4, dtype=torch.float16)
    product = broadcast(torch.tensor([2.0, 3.0], dtype=torch.float64), x) * x
    assert product.dtype == torch.float16
    assert product[0].unique().tolist() == [2]
    assert product[1].unique().tolist() == [3]


@pytest.mark.parametrize(("make", "least"), [(cosine, 1), (karras, 2), (ddpm_linear, 1)])
def test_too_few_steps_are_refused_with_the_least_number(make, least):
    with pytest.raises(ValueError, match=f"num_steps is {least - 1}: use {least} or more"):
        make(least - 1)
    assert make(least).num_steps == least
