"""Trajectories against diffusers, against EDM's algorithm, and their order of convergence."""

import itertools

import pytest
import torch
from diffusers import DDIMScheduler

from tract.denoiser import Denoiser
from tract.levels import cosine, ddpm_linear, karras
from tract.oracle import Gaussian
from tract.samplers import ddim_x0, heun_x0, sample, step_indices, trajectory
from tract.step import ddim_step

GAUSSIAN = Gaussian(
    torch.tensor([0.3, -0.2], dtype=torch.float64),
    torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64),
)


def noise(generator, count=64):
    return torch.randn(count, 2, dtype=torch.float64, generator=generator)


class Tanh(torch.nn.Module):
    """Some network."""

    def forward(self, x, logsnr, labels):
        return torch.tanh(2 * x.flip(1) + logsnr[:, None] / 10)


@pytest.mark.parametrize(("prediction", "theirs"), [("eps", "epsilon"), ("v", "v_prediction")])
def test_every_ddim_step_is_that_of_diffusers(generator, prediction, theirs):
    levels = ddpm_linear(1000)
    scheduler = DDIMScheduler(
        1000, clip_sample=False, set_alpha_to_one=True, prediction_type=theirs
    )
    # Theirs is rounded to float32; test_levels compares it. This is about the step.
    scheduler.alphas_cumprod = levels.alpha[1:] ** 2
    scheduler.set_timesteps(10)
    net = Tanh()
    denoise = Denoiser(net, prediction)
    x = noise(generator)
    # Their timestep 0 is our level 1; before it comes clean data.
    indices = [int(t) + 1 for t in scheduler.timesteps] + [0]
    assert indices == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    for timestep, (i_t, i_s) in zip(scheduler.timesteps, itertools.pairwise(indices), strict=True):
        t, s = levels[i_t], levels[i_s]
        output = net(x, t.logsnr.expand(len(x)), None)
        expected = scheduler.step(output, timestep, x).prev_sample
        x = ddim_step(x, denoise(x, t), t, s)
        # They round 1 - alpha^2 >= 1e-4, so know 1e-12 of it; x0 is at most 80 noises.
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-10)


def error(levels, num_steps, solver, generator):
    eps = noise(generator.manual_seed(0))
    exact = GAUSSIAN.flow(levels.sigma[-1] * eps, levels[-1], levels[0])
    ours = sample(GAUSSIAN, eps, levels, num_steps, solver=solver)
    return (ours - exact).square().mean().sqrt().item()


@pytest.mark.parametrize("make", [cosine, karras, ddpm_linear])
def test_the_error_of_ddim_halves_when_steps_double(make, generator):
    levels = make(512)
    errors = [error(levels, n, ddim_x0, generator) for n in (64, 128, 256)]
    for coarse, fine in itertools.pairwise(errors):
        # First order: 2 + O(h), and h is 1/64 here.
        assert coarse / fine == pytest.approx(2, abs=0.1)


def test_heun_in_ve_is_edms_algorithm_1(generator):
    levels = karras(8)
    sigma = levels.sigma.flip(0)
    x = eps = noise(generator)
    x = x * sigma[0]
    for now, after in itertools.pairwise(range(9)):
        d = (x - GAUSSIAN(x, levels[8 - now])) / sigma[now]
        euler = x + (sigma[after] - sigma[now]) * d
        if sigma[after] > 0:
            d_after = (euler - GAUSSIAN(euler, levels[8 - after])) / sigma[after]
            x = x + (sigma[after] - sigma[now]) * (d + d_after) / 2
        else:
            x = euler
    ours = sample(GAUSSIAN, eps, levels, 8, solver=heun_x0)
    # Values of 80 with roundings of 1e-16 on the way.
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-12)


def test_a_vp_heun_step_is_the_ve_heun_step_of_x_divided_by_alpha(generator):
    vp = cosine(32)
    ve = type(vp)(torch.ones_like(vp.alpha), vp.sigma / vp.alpha)
    t, s = torch.tensor([24, 20, 9, 5]), torch.tensor([20, 19, 1, 4])
    x = noise(generator, 4)
    in_vp = heun_x0(GAUSSIAN, x, vp[t], vp[s], None)
    in_ve = heun_x0(GAUSSIAN, x / vp[t].alpha[:, None], ve[t], ve[s], None)
    torch.testing.assert_close(in_ve, in_vp, rtol=1e-12, atol=1e-12)


def test_heun_treats_every_sample_of_a_batch_by_its_own_levels(generator):
    def crooked(x_t, level, labels):  # not even at the clean level is it what it should be
        return torch.tanh(x_t + level.sigma[..., None])

    levels = karras(8)
    t, s = torch.tensor([8, 1, 4, 1]), torch.tensor([7, 0, 0, 0])  # some end clean, one does not
    x = noise(generator, 4)
    together = heun_x0(crooked, x, levels[t], levels[s], None)
    for row in range(4):
        alone = heun_x0(crooked, x[row : row + 1], levels[t[row]], levels[s[row]], None)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-13, atol=1e-13)


def test_heun_asks_once_at_the_last_step_and_twice_before(generator):
    calls = []

    def counting(x_t, level, labels):
        calls.append(level.sigma.item())
        return GAUSSIAN(x_t, level)

    sample(counting, noise(generator), karras(4), 4, solver=heun_x0)
    sigma = karras(4).sigma.tolist()
    assert calls == [sigma[i] for i in (4, 3, 3, 2, 2, 1, 1)]


def test_a_trajectory_starts_at_scaled_noise_and_visits_the_coarse_grid(levels, generator):
    eps = noise(generator)
    visited = list(trajectory(GAUSSIAN, eps, levels, 4))
    assert [index for index, _ in visited] == [32, 24, 16, 8, 0]
    assert torch.equal(visited[0][1], levels.sigma[-1] * eps)


def test_one_step_is_the_denoised_noise(levels, generator):
    eps = noise(generator)
    expected = levels.alpha[0] * GAUSSIAN(levels.sigma[-1] * eps, levels[-1])
    # In VP the cosine grid keeps sigma_0 = 4.5e-5 of the noise.
    atol = 5 * levels.sigma[0].item() + 1e-12
    torch.testing.assert_close(sample(GAUSSIAN, eps, levels, 1), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("solver", [ddim_x0, heun_x0])
def test_labels_reach_every_call_of_the_denoiser(generator, solver):
    labels, seen = torch.arange(64), []

    def spying(x_t, level, labels):
        seen.append(labels)
        return x_t

    sample(spying, noise(generator), karras(4), 4, labels=labels, solver=solver)
    assert len(seen) == (4 if solver is ddim_x0 else 7)
    assert all(given is labels for given in seen)


def test_sampling_builds_no_graph_and_leaves_gradients_on_for_the_caller(generator):
    net = torch.nn.Linear(2, 2).double()
    steps = trajectory(lambda x, level, labels: net(x), noise(generator), karras(4), 4)
    for _, x in steps:
        assert not x.requires_grad
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("num_steps", [0, -1, 3, 64])
def test_steps_that_do_not_divide_the_grid_are_refused(num_steps):
    message = f"num_steps is {num_steps}, which does not divide .* 32 .*choose a divisor of 32"
    with pytest.raises(ValueError, match=message):
        step_indices(32, num_steps)
    with pytest.raises(ValueError, match=message):
        sample(GAUSSIAN, torch.zeros(1, 2), karras(32), num_steps)
