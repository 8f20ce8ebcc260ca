"""Methods beyond the paper against their equations: aDDIM, consistency training, norms."""

import math
from functools import partial

import pytest
import torch

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.levels import cosine, karras
from tract.losses import LOSSES, loss_of
from tract.methods import METHODS, closure_target
from tract.networks.mlp import MLP
from tract.oracle import Gaussian
from tract.samplers import addim_x0, ddim_x0, heun_x0
from tract.settings import Distillation
from tract.step import add_noise, ddim_step

HALF = Gaussian(
    torch.zeros(3), torch.full((3,), 0.5).diag()
)  # the prior that 0.1 / (2 + SNR) is of


@pytest.fixture
def draws(generator):
    return torch.randn(2, 5, 3, dtype=torch.float64, generator=generator)


def test_an_addim_step_is_its_closed_form_on_a_gaussian(draws):
    levels = cosine(16)
    t, s = levels[torch.tensor([16, 12, 9, 5, 2])], levels[torch.tensor([15, 8, 4, 1, 0])]
    x_t = add_noise(draws[0], draws[1], t)
    step = ddim_step(x_t, addim_x0(HALF, x_t, t, s), t, s)
    a_t, s_t, a_s, s_s = (c[:, None] for c in (t.alpha, t.sigma, s.alpha, s.sigma))
    mean = a_t / (a_t**2 + 2 * s_t**2) * x_t  # of x0 given x_t
    eps = (x_t - a_t * mean) / s_t
    tenth = 0.1 * 0.5 * s_t**2 / (0.5 * a_t**2 + s_t**2)  # of its variance
    spread = 3 / (eps**2).sum(1, keepdim=True) * (a_s - a_t * s_s / s_t) ** 2 * tenth
    torch.testing.assert_close(step, a_s * mean + (s_s**2 + spread).sqrt() * eps)


def test_addim_is_ddim_for_short_steps_and_along_the_data_themselves(draws):
    t = karras(16)[torch.tensor([16, 12, 9, 5, 2])]
    x_t = add_noise(draws[0], draws[1], t)
    near = type(t)(t.alpha, t.sigma * (1 - 1e-9))
    torch.testing.assert_close(
        addim_x0(HALF, x_t, t, near), ddim_x0(HALF, x_t, t, near), rtol=0, atol=1e-8
    )
    known = addim_x0(lambda *_: draws[0], x_t, t, karras(16)[torch.zeros(5).long()], None, draws[0])
    assert torch.equal(known, draws[0])


def test_addim_takes_three_quarters_of_the_known_error_for_variance(draws):
    levels = cosine(16)
    t, s = levels[torch.full((5,), 9)], levels[torch.full((5,), 4)]
    x_t = add_noise(draws[0], draws[1], t)
    x0_hat = HALF(x_t, t)
    x_s = ddim_step(x_t, addim_x0(HALF, x_t, t, s, None, draws[0]), t, s)
    eps = (x_t - t.alpha[0] * x0_hat) / t.sigma[0]
    a = s.alpha[0] - t.alpha[0] * s.sigma[0] / t.sigma[0]
    error = ((draws[0] - x0_hat) ** 2).sum(1, keepdim=True)
    root = (s.sigma[0] ** 2 + a**2 * 0.75 * error / (eps**2).sum(1, keepdim=True)).sqrt()
    torch.testing.assert_close(x_s, s.alpha[0] * x0_hat + root * eps)


@pytest.mark.parametrize("levels", [cosine(12), karras(12)])
def test_consistency_training_moves_along_the_data_and_ends_at_them(levels, draws):
    first = torch.tensor([12, 9, 7, 4, 1])
    t, u, s = levels[first], levels[first - 1], levels[(first - 1) // 6 * 6]
    hop = METHODS["CT"].first_hop
    x_t, x_u = add_noise(draws[0], draws[1], t), add_noise(draws[0], draws[1], u)
    target = closure_target(None, HALF, x_t, t, u, s, None, hop, draws[0])
    x_s = ddim_step(x_u, HALF(x_u, u), u, s)
    starts = first % 6 == 1  # of a segment: there the target is what score matching has
    assert torch.equal(target[starts], draws[0][starts])
    torch.testing.assert_close(ddim_step(x_t, target, t, s)[~starts], x_s[~starts])


@pytest.mark.parametrize("estimate", [ddim_x0, heun_x0, addim_x0])
def test_a_target_at_the_clean_end_is_a_number_whoever_makes_the_second_hop(estimate, draws):
    levels = karras(8)
    t, u, s = (levels[torch.full((5,), i)] for i in (1, 0, 0))
    x_t = add_noise(draws[0], draws[1], t)
    target = closure_target(HALF, HALF, x_t, t, u, s, None, estimate)
    assert torch.equal(target, estimate(HALF, x_t, t, u))


def mlp():
    torch.manual_seed(0)
    return Denoiser(MLP(2, channels=16, num_blocks=1), "edm", 1.0)


def records_of(teacher, data, levels, **more):
    options = {
        "train_images": 128,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "clamp": "none",
        "loss_weight": "uniform",
    }
    settings = Distillation(**options, **more)
    state = start_distillation(teacher, settings, mlp())
    return state, distill(state, data, levels, settings)


@pytest.mark.parametrize("method", ["TRACT", "consistency", "CT"])
def test_with_mu_s_0_in_one_segment_the_student_is_its_own_target_network(method, generator):
    """Song et al. 2023: |f(x_t, t) - stopgrad f(x_u, u)|^2, by teacher (CD) or by data (CT)."""
    point = torch.tensor([0.3, -0.8])
    spread = torch.zeros(64, 2) if method == "CT" else torch.randn(64, 2, generator=generator)
    data = Data("points", point + spread)
    levels, prior = karras(8), Gaussian(torch.zeros(2), torch.eye(2))
    teacher = None if method == "CT" else prior
    state, records = records_of(
        teacher, data, levels, method=method, step_schedule=(8, 1), self_ema=0
    )
    for _ in range(8):
        before = mlp()
        before.load_state_dict(state.student.state_dict())
        shown = []
        keep = partial(list.append, shown)
        handle = state.student.register_forward_hook(lambda _, x, y, keep=keep: keep((x, y)))
        record = next(records)
        handle.remove()
        (x_t, t, _), ours = shown[0]
        u = levels[(levels.sigma[:, None] - t.sigma).abs().argmin(0) - 1]
        x0 = point.expand(16, 2) if method == "CT" else prior(x_t, t)
        with torch.no_grad():
            x_u = ddim_step(x_t, x0, t, u)
            aim = torch.where((u.sigma == 0)[:, None], x0, before(x_u, u))
        assert record.loss == pytest.approx(((ours - aim) ** 2).mean().item(), rel=1e-4)


def test_losses_are_their_formulas_and_have_a_gradient_everywhere():
    x = torch.tensor([[0.0, 0.0], [3e-4, 4e-4], [3.0, 4.0]], requires_grad=True)
    c = 0.00054 * math.sqrt(2)
    formulas = {
        "squared": x.square().sum(1),
        "norm": x.detach().norm(dim=1),
        "pseudo_huber": (x.square().sum(1) + c**2).sqrt() - c,
    }
    assert formulas.keys() == LOSSES.keys()
    for name, formula in formulas.items():
        mse = x.square().mean(1)
        torch.testing.assert_close(loss_of(name, "sum", 2)(mse), formula, rtol=1e-5, atol=1e-9)
        mean = loss_of(name, "mean", 2)(mse)
        shrunk = formula / (2 if name == "squared" else math.sqrt(2))
        torch.testing.assert_close(mean, shrunk, rtol=1e-5, atol=1e-9)
        (slope,) = torch.autograd.grad(mean.sum(), x)
        assert slope.isfinite().all() and not slope[0].any()
