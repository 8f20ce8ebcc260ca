"""EDM and VE: targets against the paper's equations in numpy, Heun's order, whole schedules."""

import itertools

import numpy as np
import pytest
import torch
from helpers import assert_identical, everything

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.levels import karras
from tract.methods import closure_target
from tract.metrics.samples import sample_batches
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.oracle import Gaussian
from tract.phases import parse_schedule
from tract.samplers import SOLVERS, ddim_x0, heun_x0, sample
from tract.settings import Distillation
from tract.step import ddim_step

MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[1.0, 0.6], [0.6, 0.5]])
GAUSSIAN = Gaussian(torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE))
GRID = karras(40)

# EDM's grid and the paper's equations 11 to 15, once more, in numpy and without a common formula.
SIGMA = np.array([0] + [(0.002 ** (1 / 7) * (39 - i) / 39 + 80 ** (1 / 7) * i / 39) ** 7
                        for i in range(40)])  # fmt: skip


def teacher(x, sigma):
    """E[x0 | x] for x (2,) noised to sigma."""
    return MEAN + COVARIANCE @ np.linalg.solve(COVARIANCE + sigma**2 * np.eye(2), x - MEAN)


def self_teacher(x, sigma):
    """Some other function."""
    return np.cos(x - sigma)


def euler(denoise, x_t, t, s):
    """DDIM-VE: x_s = x0 + sigma_s / sigma_t (x_t - x0)."""
    x0 = denoise(x_t, SIGMA[t])
    return x0 + SIGMA[s] / SIGMA[t] * (x_t - x0)


def runge_kutta(denoise, x_t, t, s):
    """Heun's second-order step of dx / dsigma = (x - x0) / sigma; Euler's where sigma_s = 0."""
    slope_t = (x_t - denoise(x_t, SIGMA[t])) / SIGMA[t]
    x_s = x_t + (SIGMA[s] - SIGMA[t]) * slope_t
    if SIGMA[s] == 0:
        return x_s
    slope_s = (x_s - denoise(x_s, SIGMA[s])) / SIGMA[s]
    return x_t + (SIGMA[s] - SIGMA[t]) * (slope_t + slope_s) / 2


STEPS = {"ddim": euler, "heun": runge_kutta}


def groups(schedule):
    """Indices (t, u, s) of every level of every phase."""
    for phase in parse_schedule(schedule, 40):
        for first in range(1, phase.teacher_steps + 1):
            end = (first - 1) // phase.segment * phase.segment
            yield tuple(i * phase.stride for i in (first, first - 1, end))


def test_the_grid_is_edms():
    np.testing.assert_allclose(GRID.sigma.numpy(), SIGMA, rtol=1e-13)
    assert bool((GRID.alpha == 1).all())


@pytest.mark.parametrize("schedule", [(40, 1), (40, 2), (40, 8, 1), (40, 8, 8, 4)])
@pytest.mark.parametrize("hop", STEPS)
def test_targets_are_those_of_the_papers_equations_14_and_15(hop, schedule, generator):
    for t, u, s in groups(schedule):
        x_t = torch.randn(1, 2, dtype=torch.float64, generator=generator) * (1 + SIGMA[t])
        x = x_t[0].numpy()
        x_u = STEPS[hop](teacher, x, t, u)
        x_s = euler(self_teacher, x_u, u, s) if u > s else x_u
        expected = (SIGMA[t] * x_s - SIGMA[s] * x) / (SIGMA[t] - SIGMA[s])

        def second(x, level, labels):
            return torch.from_numpy(self_teacher(x[0].numpy(), level.sigma.item()))[None]

        levels = GRID[t], GRID[u], GRID[s]
        ours = closure_target(GAUSSIAN, second, x_t, *levels, solver=SOLVERS[hop])
        # sigma_t x_s is up to 1e4 and is divided by steps from 5e-4 of sigma.
        np.testing.assert_allclose(ours[0].numpy(), expected, rtol=1e-9, atol=1e-9)


def test_from_the_last_but_one_level_the_self_teachers_x0_is_the_target(generator):
    # sigma_s = 0: wherever the first hop leads, the second goes to its own x0.
    x_t = torch.randn(5, 2, dtype=torch.float64, generator=generator)
    t, u, s = GRID[2], GRID[1], GRID[0]
    target = closure_target(GAUSSIAN, lambda x, level, labels: 3 * x, x_t, t, u, s)
    assert torch.equal(target, 3 * ddim_step(x_t, GAUSSIAN(x_t, t), t, u))


def test_on_edms_own_grids_heuns_error_falls_fourfold_when_steps_double():
    eps = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = {"ddim": [], "heun": []}
    for hop, steps in itertools.product(errors, (40, 80, 160)):
        levels = karras(steps)
        exact = GAUSSIAN.flow(levels.sigma[-1] * eps, levels[-1], levels[0])
        x = sample(GAUSSIAN, eps, levels, steps, solver=SOLVERS[hop])
        errors[hop].append((x - exact).square().mean().sqrt().item())
    ratios = {hop: [a / b for a, b in itertools.pairwise(e)] for hop, e in errors.items()}
    # 2 + O(h) and 4 + O(h), where h is 1/40 of a path that is long in units of log sigma.
    assert ratios["ddim"] == pytest.approx([2, 2], abs=0.1)
    assert ratios["heun"] == pytest.approx([4, 4], abs=0.35)


@pytest.mark.parametrize("solver", [ddim_x0, heun_x0])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_student_of_any_steps_that_knows_its_groups_samples_as_all_teacher_steps(steps, solver):
    eps = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    asked = []

    def perfect(x_t, t, labels):
        """The x0 that leads to the end of t's group, where the teacher's steps lead."""
        i_t = int((GRID.sigma == t.sigma).nonzero())
        i_s = i_t - 40 // steps
        asked.append(i_t)
        x_s = x_t
        for i in range(i_t, i_s, -1):
            x0 = solver(GAUSSIAN, x_s, GRID[i], GRID[i - 1], None)
            x_s = ddim_step(x_s, x0, GRID[i], GRID[i - 1])
        s = GRID[i_s]
        return (t.sigma * x_s - s.sigma * x_t) / (t.sigma - s.sigma)

    whole = sample(GAUSSIAN, eps, GRID, 40, solver=solver)
    # Roundings of 1e-16 at values of 80, divided by steps of a tenth and more of sigma.
    torch.testing.assert_close(sample(perfect, eps, GRID, steps), whole, rtol=0, atol=1e-11)
    assert asked == list(range(40, 0, -40 // steps))


def test_batches_are_sampled_with_heun_as_all_at_once():
    eps = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"clamp": False, "batch": 2, "solver": heun_x0}
    ours = sample_batches(GAUSSIAN, eps, GRID, 8, **options)
    whole = sample(GAUSSIAN, eps, GRID, 8, solver=heun_x0)
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)


# ---- Whole schedules ---------------------------------------------------------------------------

NOISE = torch.randn(1024, 2, generator=torch.Generator().manual_seed(1))
POINTS = Data(
    "points", NOISE @ torch.linalg.cholesky(GAUSSIAN.covariance.float()).T + GAUSSIAN.mean.float()
)


def settings_for(schedule, steps, **more):
    return Distillation(
        step_schedule=schedule,
        train_images=64 * steps * (len(schedule) - 1),
        batch_size=64,
        learning_rate=3e-3,
        loss_weight="edm",
        clamp="none",
        **more,
    )


def mlp(seed=0, channels=32):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, channels=channels, num_blocks=1), "edm", 0.9)


@pytest.mark.parametrize("steps", [3, 6])  # phases end at 4 and 8
@pytest.mark.parametrize("hop", STEPS)
def test_a_two_phase_edm_schedule_runs_and_resumes_bit_for_bit(tmp_path, hop, steps):
    settings = settings_for((40, 8, 1), steps=4, solver=hop)
    whole = start_distillation(mlp(), settings)
    records = list(distill(whole, POINTS, GRID, settings))
    assert [record.phase for record in records] == ["40>8"] * 4 + ["8>1"] * 4
    assert all(np.isfinite(record.loss) for record in records)
    first = start_distillation(mlp(), settings)
    list(itertools.islice(distill(first, POINTS, GRID, settings), steps))
    save_state(tmp_path / "state", first, {})
    second = start_distillation(mlp(), settings)
    load_state(tmp_path / "state", second)
    assert list(distill(second, POINTS, GRID, settings)) == records[steps:]
    assert_identical(everything(second), everything(whole))


@pytest.mark.parametrize(
    ("schedule", "hop"), [((40, 1), "heun"), ((40, 4, 2), "heun"), ((40, 8), "ddim")]
)
def test_students_of_one_two_and_eight_steps_learn_their_teachers_flow(schedule, hop):
    settings = settings_for(schedule, steps=300, solver=hop)
    state = start_distillation(GAUSSIAN, settings, mlp())
    for _ in distill(state, POINTS, GRID, settings):
        pass
    eps = torch.randn(512, 2, generator=torch.Generator().manual_seed(2))
    whole = sample(GAUSSIAN, eps, GRID, 40, solver=SOLVERS[hop])

    def distance(denoise):
        x = sample(denoise, eps, GRID, schedule[-1])
        return (x - whole).square().mean().sqrt().item()

    # The teacher itself with as few steps; a fifth of its distance or less was measured.
    assert distance(state.ema) < 0.3 * distance(GAUSSIAN)
