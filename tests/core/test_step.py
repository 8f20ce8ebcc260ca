"""The step and the target's weight: pure arithmetic, checked in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tract.levels import Level, cosine, karras
from tract.step import add_noise, closure_weight, ddim_step

TRIPLES = [(32, 31, 0), (32, 20, 7), (20, 19, 16), (9, 4, 1), (2, 1, 0), (5, 3, 3)]
# Values are of order 1 in VP and of order sigma <= 80 in VE; a dozen float64 roundings.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def tensors(generator, count):
    return torch.randn(count, 4, 2, dtype=torch.float64, generator=generator).unbind()


def test_noising_uses_both_coefficients_of_each_sample():
    x0, eps = torch.tensor([[1.0], [10.0]]), torch.tensor([[100.0], [1000.0]])
    level = Level(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
    assert add_noise(x0, eps, level).tolist() == [[301.0], [4020.0]]


@pytest.mark.parametrize("indices", TRIPLES)
def test_two_steps_along_one_x0_are_one_step(levels, generator, indices):
    x_t, x0 = tensors(generator, 2)
    t, u, s = (levels[i] for i in indices)
    in_two = ddim_step(ddim_step(x_t, x0, t, u), x0, u, s)
    torch.testing.assert_close(ddim_step(x_t, x0, t, s), in_two, **CLOSE)


@pytest.mark.parametrize("indices", TRIPLES)
def test_the_vp_step_is_the_papers_delta(generator, indices):
    x_t, f = tensors(generator, 2)
    t, _, s = indices
    g = cosine(32).alpha ** 2  # the paper's gamma
    g_t, g_s = g[t], g[s]
    delta = (
        x_t * ((1 - g_s) / (1 - g_t)).sqrt()
        + f * ((g_s * (1 - g_t)).sqrt() - (g_t * (1 - g_s)).sqrt()) / (1 - g_t).sqrt()
    )
    # 1 - gamma cancels: of gamma at log-SNR 20 only 1e-16 / 2e-9 = 5e-8 is known.
    torch.testing.assert_close(
        ddim_step(x_t, f, cosine(32)[t], cosine(32)[s]), delta, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("indices", TRIPLES)
def test_the_ve_step_is_eulers_step_of_edm(generator, indices):
    x_t, x0 = tensors(generator, 2)
    t, _, s = indices
    sigma = karras(32).sigma
    slope = (x_t - x0) / sigma[t]  # dx/dsigma
    euler = x_t + (sigma[s] - sigma[t]) * slope
    torch.testing.assert_close(ddim_step(x_t, x0, karras(32)[t], karras(32)[s]), euler, **CLOSE)


@pytest.mark.parametrize("indices", TRIPLES)
def test_a_vp_step_is_a_ve_step_of_x_divided_by_alpha(generator, indices):
    x_t, x0 = tensors(generator, 2)
    vp = cosine(32)
    ve = Level(torch.ones_like(vp.alpha), vp.sigma / vp.alpha)
    t, _, s = indices
    in_vp = ddim_step(x_t, x0, vp[t], vp[s]) / vp[s].alpha
    in_ve = ddim_step(x_t / vp[t].alpha, x0, ve[t], ve[s])
    torch.testing.assert_close(in_ve, in_vp, **CLOSE)


@pytest.mark.parametrize("alpha", [1.0, 0.25])
def test_a_step_to_the_clean_level_is_exactly_alpha_x0(generator, alpha):
    x_t, x0 = tensors(generator, 2)
    clean = Level(torch.tensor(alpha).double(), torch.tensor(0.0).double())
    assert torch.equal(ddim_step(x_t, x0, karras(32)[32], clean), alpha * x0)


def test_a_step_from_noised_data_along_its_x0_keeps_the_noise(levels, generator):
    x0, eps = tensors(generator, 2)
    t, s = levels[torch.tensor([32, 20, 9, 2])], levels[torch.tensor([0, 19, 1, 1])]
    stepped = ddim_step(add_noise(x0, eps, t), x0, t, s)
    torch.testing.assert_close(stepped, add_noise(x0, eps, s), **CLOSE)


@pytest.mark.parametrize("indices", [(32, 20, 20), (2, 1, 1), (1, 0, 0)])
def test_the_weight_is_one_where_there_is_only_the_first_hop(levels, indices):
    t, u, s = (levels[i] for i in indices)
    assert closure_weight(t, u, s).item() == 1


def test_the_weight_is_zero_where_the_second_hop_ends_clean():
    levels = karras(32)
    i_t = torch.arange(2, 33)
    weight = closure_weight(levels[i_t], levels[i_t - 1], levels[torch.zeros_like(i_t)])
    assert weight.tolist() == [0.0] * 31


@given(st.lists(st.integers(0, 256), min_size=3, max_size=3), st.booleans())
def test_the_weight_is_a_share(indices, is_vp):
    s, u, t = sorted(indices)
    if t == u:  # the first hop goes somewhere
        return
    levels = cosine(256) if is_vp else karras(256)
    weight = closure_weight(levels[t], levels[u], levels[s]).item()
    assert 0 <= weight <= 1
    assert (weight == 1) == (u == s)


@pytest.mark.parametrize("make", [cosine, karras])
def test_the_weight_is_the_root_snr_gained_by_the_first_hop(make):
    # (r_u - r_t) / (r_s - r_t) with r = alpha / sigma, wherever that is finite.
    levels = make(32)
    t, u, s = levels[torch.tensor([32, 20, 9])], levels[torch.tensor([20, 19, 4])], levels[2]
    r_t, r_u, r_s = (x.alpha / x.sigma for x in (t, u, s))
    torch.testing.assert_close(closure_weight(t, u, s), (r_u - r_t) / (r_s - r_t), **CLOSE)


def test_levels_of_a_batch_are_weighted_one_by_one(levels):
    indices = torch.tensor(TRIPLES)
    together = closure_weight(*(levels[i] for i in indices.T))
    alone = [closure_weight(*(levels[i] for i in triple)).item() for triple in TRIPLES]
    assert together.tolist() == alone
