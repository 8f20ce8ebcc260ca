"""Distillation: targets against the paper's equations, the loop by hand, phases, and resuming."""

import itertools
import math
from copy import deepcopy

import pytest
import torch
from helpers import assert_identical, everything, weights
from torch import nn

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation, start_next_phase
from tract.levels import cosine, ddpm_linear, karras
from tract.methods import METHODS, closure_target, draw_any_level, draw_group_start
from tract.networks.build import build_denoiser, named_network, student_for
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.oracle import Gaussian
from tract.phases import Phase, parse_schedule
from tract.samplers import heun_x0, sample
from tract.settings import Distillation
from tract.step import ddim_step

# ---- The target: one step to it is two hops along teacher and self-teacher --------------------


def teacher(x_t, level, labels=None):
    """Some function of sample and level, within [-1, 1]."""
    return torch.tanh(2 * x_t.flip(1) + level.sigma.log1p()[..., None])


def self_teacher(x_t, level, labels=None):
    """Another one."""
    return torch.cos(x_t - 3 * level.alpha[..., None])


def all_triples(levels):
    """Levels t > u >= s of every triple of grid indices."""
    indices = [(t, u, s) for t in range(2, 33) for u in range(t) for s in range(u + 1)]
    return [levels[i] for i in torch.tensor(indices).T]


def noisy(t, generator):
    scale = (t.alpha**2 + t.sigma**2).sqrt()[:, None]
    return scale * torch.randn(len(t), 2, dtype=torch.float64, generator=generator)


def column(*coefficients):
    return [c[..., None] for c in coefficients]


def test_the_vp_target_solves_the_papers_equation_8(generator):
    t, u, s = all_triples(cosine(32))
    x_t = noisy(t, generator)
    # delta(f, x, t, s) in terms of alpha = sqrt(gamma) and sigma = sqrt(1 - gamma).
    alpha_t, alpha_u, alpha_s, sigma_t, sigma_u, sigma_s = column(
        t.alpha, u.alpha, s.alpha, t.sigma, u.sigma, s.sigma
    )
    x_u = (
        x_t * sigma_u / sigma_t
        + teacher(x_t, t) * (alpha_u * sigma_t - alpha_t * sigma_u) / sigma_t
    )
    x_s = (
        x_u * sigma_s / sigma_u
        + self_teacher(x_u, u) * (alpha_s * sigma_u - alpha_u * sigma_s) / sigma_u
    )
    x_s = torch.where(u.sigma[:, None] == s.sigma[:, None], x_u, x_s)
    solved = (sigma_t * x_s - sigma_s * x_t) / (alpha_s * sigma_t - alpha_t * sigma_s)
    target = closure_target(teacher, self_teacher, x_t, t, u, s)
    # The denominator is sin of the angle between levels, 0.05 or more: 1e-16 / 0.05.
    torch.testing.assert_close(target, solved, rtol=0, atol=1e-9)


def test_without_a_second_hop_the_target_is_the_teachers_x0(levels, generator):
    t, u = levels[torch.tensor([32, 9])], levels[torch.tensor([31, 8])]
    x_t = noisy(t, generator)
    assert torch.equal(closure_target(teacher, None, x_t, t, u, u), teacher(x_t, t))


def test_the_second_hop_is_asked_only_in_phases_that_have_one():
    settings = settings_for(step_schedule=(8, 8, 1))
    state = start_distillation(mlp(), settings, mlp(seed=1))
    state.self_teacher.forward = None  # calling it fails
    records = distill(state, POINTS, cosine(8), settings)
    for _ in range(settings.steps_per_phase + 1):
        next(records)
    state.self_teacher.forward = None  # the second phase's
    with pytest.raises(TypeError, match="not callable"):
        next(records)


@pytest.mark.parametrize(("i_t", "i_s"), [(32, 24), (24, 8), (9, 1), (8, 0), (32, 0)])
def test_the_target_leads_to_the_end_of_the_teachers_rollout(levels, generator, i_t, i_s):
    t, s = levels[i_t], levels[i_s]

    def rollout(x, start, end):
        for i in range(start, end, -1):
            x = ddim_step(x, teacher(x, levels[i]), levels[i], levels[i - 1])
        return x

    def exact_self_teacher(x_u, u, labels=None):
        """The x0 that leads in one step to where the teacher's steps lead."""
        x_s = rollout(x_u, i_t - 1, i_s)
        return (u.sigma * x_s - s.sigma * x_u) / (s.alpha * u.sigma - u.alpha * s.sigma)

    x_t = noisy(levels[[i_t] * 4], generator)
    target = closure_target(teacher, exact_self_teacher, x_t, t, levels[i_t - 1], s)
    # 32 steps with roundings of 1e-16 at values of 80.
    torch.testing.assert_close(
        ddim_step(x_t, target, t, s), rollout(x_t, i_t, i_s), rtol=0, atol=1e-11
    )


@pytest.mark.parametrize("i_t", [32, 9, 2])
def test_btds_target_leads_where_two_steps_of_the_teacher_lead(levels, generator, i_t):
    t, u, s = levels[i_t], levels[i_t - 1], levels[i_t - 2]
    x_t = noisy(levels[[i_t] * 4], generator)
    x_u = ddim_step(x_t, teacher(x_t, t), t, u)
    x_s = ddim_step(x_u, teacher(x_u, u), u, s)
    second = METHODS["BTD"].second_hop(teacher, self_teacher)
    target = closure_target(teacher, second, x_t, t, u, s)
    torch.testing.assert_close(ddim_step(x_t, target, t, s), x_s, rtol=0, atol=1e-12)


def test_the_target_is_accurate_in_float32_on_a_fine_grid(generator):
    # Solving for the target divides by differences of 1e-3; here nothing is divided.
    levels = cosine(1024)
    t, s = levels[torch.arange(2, 1025)], levels[torch.arange(1023)]
    u = levels[torch.arange(1, 1024)]
    first, second = torch.rand(2, 1023, 2, dtype=torch.float64, generator=generator) * 2 - 1
    x_t = noisy(t, generator)

    def target(dtype):
        a, b = first.to(dtype), second.to(dtype)
        return closure_target(lambda *_: a, lambda *_: b, x_t.to(dtype), t, u, s).double()

    # Four roundings of numbers below 2 by 2^-24.
    error = target(torch.float32) - target(torch.float64)
    assert error.abs().max() < 4 * 2 * 2**-24


def test_the_target_carries_labels_to_both_and_no_gradient(levels):
    labels, weight = torch.tensor([1, 2]), torch.ones((), requires_grad=True)
    seen = []

    def spying(x_t, level, labels):
        seen.append(labels)
        return weight * x_t

    t, u, s = levels[9], levels[8], levels[4]
    for second, evaluations in ((lambda *given: spying(*given), 3), (spying, 4)):
        seen.clear()
        target = closure_target(spying, second, torch.ones(2, 2), t, u, s, labels, heun_x0)
        assert len(seen) == evaluations  # two for each step of the teacher, one of a self-teacher
        assert all(given is labels for given in seen)
    assert not target.requires_grad


# ---- Where students are taught ------------------------------------------------------------------


@pytest.mark.parametrize(
    "phase", [Phase(64, 64, 8), Phase(64, 8, 1), Phase(8, 2, 1), Phase(64, 8, 8)]
)
def test_tract_draws_all_teacher_steps_alike(phase, generator):
    drawn = draw_any_level(phase, 100 * phase.teacher_steps, generator)
    counts = drawn.bincount(minlength=phase.teacher_steps + 1).tolist()
    assert counts[0] == 0
    assert len(counts) == phase.teacher_steps + 1
    # About Poisson with mean 100: five standard deviations.
    assert all(50 < count < 150 for count in counts[1:])


@pytest.mark.parametrize("phase", [Phase(64, 64, 32), Phase(64, 2, 1), Phase(64, 8, 8)])
def test_btd_draws_all_noisy_ends_of_groups_alike(phase, generator):
    drawn = draw_group_start(phase, 100 * phase.student_steps, generator)
    counts = drawn.bincount().tolist()
    assert len(counts) == phase.teacher_steps + 1
    assert all(count == 0 for i, count in enumerate(counts) if i % phase.segment or i == 0)
    assert all(50 < count < 150 for count in counts[phase.segment :: phase.segment])


# ---- The loop -----------------------------------------------------------------------------------

ORACLE = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))


def gaussian_points(count):
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(1))
    return Data("points", noise @ torch.linalg.cholesky(ORACLE.covariance).T + ORACLE.mean)


POINTS = gaussian_points(256)
SCHEDULES = {"TRACT": (8, 4, 1), "BTD": (8, 4, 2), "consistency": (8, 1)}


def settings_for(method="TRACT", **more):
    options = {"train_images": 16 * 6, "batch_size": 16, "learning_rate": 1e-2, "clamp": "none"}
    return Distillation(method=method, **{"step_schedule": SCHEDULES[method], **options, **more})


def mlp(seed=0, channels=16):
    torch.manual_seed(seed)
    return Denoiser(MLP(2, channels=channels, num_blocks=1), "edm", 1.0)


def run(state, settings, data=POINTS, levels=None, steps=None):
    levels = levels or cosine(settings.step_schedule[0])
    return list(itertools.islice(distill(state, data, levels, settings), steps))


class Bend(nn.Module):
    """A network of one weight, which remembers what it was shown."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x, logsnr, labels):
        self.shown = x, logsnr, labels
        return torch.sin(self.weight * (x + logsnr[:, None] / 10))


def by_hand(teacher, self_teacher, student, levels, phase, settings, heun=False):
    """Loss and error of the step that just showed the student its samples."""

    def limit(network, x0):
        clamp = {"none": [], "self_teacher": [self_teacher], "all": [teacher, self_teacher]}
        return x0.clamp(-1, 1) if network in clamp[settings.clamp] else x0

    x_in, logsnr, _ = student.net.shown
    losses, errors = [], []
    for row in range(len(x_in)):
        i_t = (levels.logsnr - logsnr[row]).abs().argmin().item()
        t = levels[i_t]
        x_t = x_in[row : row + 1].double() * (t.alpha**2 + t.sigma**2).sqrt()
        i_u = i_t - phase.stride
        width = phase.stride * phase.segment
        i_s = math.ceil(i_t / width) * width - width  # the end of the group that i_t is in
        if settings.method == "BTD":
            assert i_t % width == 0
        u, s = levels[i_u], levels[i_s]

        def hop(network, x, a, b, heun):
            x0 = limit(network, network(x.float(), a).double())
            if heun and b.sigma > 0:
                euler = b.sigma / a.sigma * x + (b.alpha - b.sigma / a.sigma * a.alpha) * x0
                x0_b = limit(network, network(euler.float(), b).double())
                eps_a, eps_b = (x - a.alpha * x0) / a.sigma, (euler - b.alpha * x0_b) / b.sigma
                x0 = x / a.alpha - a.sigma / a.alpha * (eps_a + eps_b) / 2  # in the VE picture
            return b.sigma / a.sigma * x + (b.alpha - b.sigma / a.sigma * a.alpha) * x0

        x_u = x_s = hop(teacher, x_t, t, u, heun)
        if i_u > i_s:
            btd = settings.method == "BTD"
            x_s = hop(teacher if btd else self_teacher, x_u, u, s, heun and btd)
        target = (t.sigma * x_s - s.sigma * x_t) / (s.alpha * t.sigma - t.alpha * s.sigma)
        error = (student(x_t.float(), t).double() - target).square().mean()
        errors.append(error.item())
        losses.append(max(1.0, t.snr.item()) * error.item())
    return sum(losses) / len(losses), sum(errors) / len(errors)


@pytest.mark.parametrize("step", [0, 1, 3, 4])  # a phase is three steps long
@pytest.mark.parametrize("clamp", ["none", "self_teacher", "all"])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("method", ["TRACT", "BTD"])
def test_a_step_minimises_the_distance_to_the_solved_target(method, solver, clamp, step):
    settings = settings_for(method, clamp=clamp, solver=solver, self_ema=0.7)
    levels = karras(8, sigma_min=0.1, sigma_max=5.0)
    state = start_distillation(ORACLE, settings, Denoiser(Bend(0.8), "x0"))
    records = distill(state, POINTS, levels, settings)
    for _ in range(step):
        next(records)
    at_boundary = state.step == settings.steps_per_phase
    roles = ["ema"] * 3 if at_boundary else ["teacher", "self_teacher", "student"]
    teacher, self_teacher, student = (deepcopy(getattr(state, role)) for role in roles)
    record = next(records)
    student.net.shown = state.student.net.shown
    phase = parse_schedule(settings.step_schedule, 8)[step // 3]
    heun = solver == "heun" and step < 3  # a student has no slopes, only its own steps
    loss, mse = by_hand(teacher, self_teacher, student, levels, phase, settings, heun)
    # float32 through two or three networks and sines; SNR up to 100 weighs it alike.
    assert record.loss == pytest.approx(loss, rel=1e-4)
    assert record.mse == pytest.approx(mse, rel=1e-4)
    assert record.phase == str(phase)


def test_averages_follow_the_student_from_the_start_of_their_phase():
    settings = settings_for(self_ema=0.7)
    state = start_distillation(ORACLE, settings, mlp())
    slow = settings.ema_residual ** (1 / 3)  # a phase has three steps
    students = []
    for record in distill(state, POINTS, cosine(8), settings):
        if record.step == 4:
            students = []
        students.append(weights(state.student).double())
        for average, decay in [(state.self_teacher, 0.7), (state.ema, slow)]:
            shares = [decay ** (len(students) - i) for i in range(1, len(students) + 1)]
            total = sum(a * w for a, w in zip(shares, students, strict=True))
            # A few float32 roundings of weights of order 1.
            torch.testing.assert_close(
                weights(average).double(), total / sum(shares), rtol=0, atol=1e-6
            )


def test_everything_starts_from_the_teacher():
    settings, teacher = settings_for(), mlp()
    state = start_distillation(teacher, settings)
    for network in (state.teacher, state.student, state.self_teacher, state.ema):
        assert network is not teacher
        assert torch.equal(weights(network), weights(teacher))
    assert all(p.requires_grad for p in state.student.parameters())
    for network in (state.teacher, state.self_teacher, state.ema):
        assert not any(p.requires_grad for p in network.parameters())


def test_a_student_of_another_network_starts_from_itself():
    teacher, small = mlp(channels=16), mlp(channels=8)
    state = start_distillation(teacher, settings_for(), small)
    assert torch.equal(weights(state.teacher), weights(teacher))
    for network in (state.student, state.self_teacher, state.ema):
        assert torch.equal(weights(network), weights(small))


def test_the_callers_networks_are_left_as_they_were():
    teacher, student = mlp(0).train(), mlp(1).train()
    before = weights(teacher), weights(student)
    run(start_distillation(teacher, settings_for(), student), settings_for())
    assert torch.equal(weights(teacher), before[0])
    assert torch.equal(weights(student), before[1])
    for network in (teacher, student):
        assert network.training
        assert all(p.requires_grad for p in network.parameters())


def test_students_are_taught_without_dropout():
    state = start_distillation(mlp().train(), settings_for())
    assert not any(m.training for m in (state.student, state.teacher, state.self_teacher))


def test_a_phase_starts_everything_from_the_average_before():
    settings = settings_for()
    state = start_distillation(mlp(), settings)
    run(state, settings, steps=3)
    average = weights(state.ema)
    assert not torch.equal(average, weights(state.student))
    start_next_phase(state)
    for network in (state.teacher, state.student, state.self_teacher, state.ema):
        assert torch.equal(weights(network), average)
    assert state.optimizer.state_dict()["state"] == {}
    optimized = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in state.student.parameters()}
    assert state.optimizer.param_groups[0]["lr"] == settings.learning_rate


def test_the_teacher_stays_fixed_within_a_phase_and_is_the_average_of_the_one_before():
    settings = settings_for()
    state = start_distillation(mlp(), settings)
    teachers, averages = [], []
    for _ in distill(state, POINTS, cosine(8), settings):
        teachers.append(weights(state.teacher))
        averages.append(weights(state.ema))
    expected = [weights(mlp())] * 3 + [averages[2]] * 3
    assert all(torch.equal(a, b) for a, b in zip(teachers, expected, strict=True))
    assert {int(m["step"]) for m in state.optimizer.state_dict()["state"].values()} == {3}


def test_records_name_their_phase_and_count_over_all_of_them():
    settings = settings_for()
    records = run(start_distillation(mlp(), settings), settings)
    assert [r.phase for r in records] == ["8>4"] * 3 + ["4>1"] * 3
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.images_seen for r in records] == [16, 32, 48, 64, 80, 96]
    assert {r.num_steps for r in records} == {6}


def test_images_are_divided_equally_among_phases():
    settings = settings_for(train_images=16 * 11 + 5, step_schedule=(8, 4, 2, 1))
    assert (settings.num_phases, settings.steps_per_phase, settings.num_steps) == (3, 3, 9)
    assert len(run(start_distillation(mlp(), settings), settings)) == 9


@pytest.mark.parametrize("steps", [0, 2, 3, 4, 6])  # a phase ends at 3
@pytest.mark.parametrize("method", ["TRACT", "BTD"])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path, steps, method):
    settings = settings_for(method, more_residuals=(0.2,))
    whole = start_distillation(mlp(), settings)
    records = run(whole, settings)
    first = start_distillation(mlp(), settings)
    run(first, settings, steps=steps)
    save_state(tmp_path / "state", first, {})
    second = start_distillation(mlp(), settings)
    torch.manual_seed(99)  # global randomness plays no part
    load_state(tmp_path / "state", second)
    assert run(second, settings) == records[steps:]
    assert_identical(everything(second), everything(whole))


def test_a_run_with_an_exact_teacher_resumes_with_the_learned_one(tmp_path):
    settings = settings_for()
    whole = start_distillation(ORACLE, settings, mlp())
    records = run(whole, settings)
    first = start_distillation(ORACLE, settings, mlp())
    run(first, settings, steps=5)  # in the second phase
    save_state(tmp_path / "state", first, {})
    second = start_distillation(ORACLE, settings, mlp(seed=1))
    load_state(tmp_path / "state", second)
    assert run(second, settings) == records[5:]
    assert_identical(everything(second), everything(whole))


def test_consistency_distillation_is_tract_in_one_group():
    states = []
    for method in ("TRACT", "consistency"):
        settings = settings_for(method, step_schedule=(8, 1))
        state = start_distillation(mlp(), settings)
        states.append((run(state, settings), everything(state)))
    assert states[0][0] == states[1][0]
    assert_identical(states[0][1], states[1][1])


def test_labels_reach_teacher_self_teacher_and_student():
    index = torch.arange(256)
    data = Data("numbered", 1000.0 * index[:, None].expand(256, 2), index)
    seen = []

    def spying(x_t, level, labels):
        seen.append((x_t, labels))
        return ORACLE(x_t, level)

    settings = settings_for()
    state = start_distillation(spying, settings, Denoiser(Bend(0.5), "x0"))
    run(state, settings, data, karras(8, sigma_min=0.1, sigma_max=5.0), steps=1)
    ((x_t, labels),) = seen
    assert torch.equal((x_t.mean(1) / 1000).round().long(), labels)
    assert state.self_teacher.net.shown[2] is labels
    assert state.student.net.shown[2] is labels


# ---- Another network takes over -----------------------------------------------------------------

TAKEOVER = {"TRACT": (8, 4, 4, 1), "BTD": (8, 4, 4, 2)}  # phases of two steps, the second equal


def taking_over(method="TRACT", **more):
    return settings_for(method, step_schedule=TAKEOVER[method], **more)


def test_another_network_takes_over_in_the_phase_of_equal_steps():
    settings, small = taking_over(), mlp(1, channels=8)
    state = start_distillation(mlp(), settings, small)
    shapes, teachers, averages = [], [], []
    for _ in distill(state, POINTS, cosine(8), settings):
        shapes.append([len(weights(n)) for n in (state.teacher, state.student, state.ema)])
        teachers.append(weights(state.teacher))
        averages.append(weights(state.ema))
    big, little = len(weights(mlp())), len(weights(small))
    assert shapes == [[big] * 3] * 2 + [[big, little, little]] * 2 + [[little] * 3] * 2
    expected = [weights(mlp())] * 2 + [averages[1]] * 2 + [averages[3]] * 2
    assert all(torch.equal(a, b) for a, b in zip(teachers, expected, strict=True))


def test_the_newcomer_starts_from_its_own_weights_and_is_left_as_it_was():
    settings, small = taking_over(), mlp(1, channels=8)
    before = weights(small)
    state = start_distillation(mlp(), settings, small)
    assert state.new_student is not small
    run(state, settings, steps=2)
    start_next_phase(state)
    for network in (state.student, state.self_teacher, state.ema):
        assert torch.equal(weights(network), before)
    optimized = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in state.student.parameters()}
    run(state, settings)
    assert torch.equal(weights(small), before)
    assert torch.equal(weights(state.new_student), before)


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("method", ["TRACT", "BTD"])
def test_at_equal_steps_the_newcomer_learns_its_teachers_own_steps(method, solver):
    settings = taking_over(method, solver=solver)
    levels = karras(8, sigma_min=0.1, sigma_max=5.0)
    small = Denoiser(Bend(0.6), "x0")
    state = start_distillation(Denoiser(Bend(0.8), "x0"), settings, small)
    records = distill(state, POINTS, levels, settings)
    (_, _, record) = itertools.islice(records, 3)
    small.net.shown = state.student.net.shown
    phase = parse_schedule(settings.step_schedule, 8)[1]
    loss, mse = by_hand(state.teacher, None, small, levels, phase, settings)
    assert record.phase == "4>4"
    assert record.loss == pytest.approx(loss, rel=1e-4)  # float32, as above
    assert record.mse == pytest.approx(mse, rel=1e-4)


@pytest.mark.parametrize("steps", range(7))  # phases end at 2, 4 and 6
@pytest.mark.parametrize("method", ["TRACT", "BTD"])
def test_a_run_that_changes_its_network_resumes_bit_for_bit(tmp_path, steps, method):
    settings = taking_over(method)

    def start(new_student):
        return start_distillation(mlp(), settings, mlp(new_student, channels=8))

    whole = start(1)
    records = run(whole, settings)
    first = start(1)
    run(first, settings, steps=steps)
    save_state(tmp_path / "state", first, {})
    second = start(1 if steps <= 2 else 2)  # once it is in, its start no longer matters
    load_state(tmp_path / "state", second)
    assert run(second, settings) == records[steps:]
    assert_identical(everything(second), everything(whole))


def test_an_average_over_all_phases_begins_with_the_network_that_is_averaged():
    settings = taking_over(phase_change="carry_on")
    state = start_distillation(mlp(), settings, mlp(1, channels=8))
    slow = settings.ema_residual ** (1 / 2)  # a phase has two steps
    students = []
    for record in distill(state, POINTS, cosine(8), settings):
        if record.step == 3:
            students = []
        students.append(weights(state.student).double())
        shares = [slow ** (len(students) - i) for i in range(1, len(students) + 1)]
        total = sum(a * w for a, w in zip(shares, students, strict=True))
        torch.testing.assert_close(
            weights(state.ema).double(), total / sum(shares), rtol=0, atol=1e-6
        )


def described(prediction, channels=8, seed=0):
    options = {"point_dim": 2, "channels": channels, "num_blocks": 1}
    network = {"net": "mlp", "prediction": prediction, "sigma_data": 1.0, "options": options}
    return build_denoiser(network, seed)


@pytest.mark.parametrize("name", ["v", "x0"])
def test_the_teachers_own_network_can_be_a_student_with_another_output(name):
    teacher = described("eps", seed=3)
    settings = settings_for(step_schedule=(8, 8, 1), student_prediction=name)
    state = start_distillation(teacher, settings, student_for(teacher, settings))
    assert state.teacher.prediction == "eps"
    for network in (state.student, state.self_teacher, state.ema):
        assert network.prediction == network.config["prediction"] == name
        assert torch.equal(weights(network), weights(teacher))
    run(state, settings)


def test_a_v_student_of_an_eps_teacher_is_right_at_once_where_there_is_little_noise(generator):
    teacher, levels = described("eps", seed=3), cosine(1024)
    settings = settings_for(step_schedule=(8, 8, 1), student_prediction="v")
    x_t = torch.randn(1, 2, generator=generator)
    for index, sigma in [(1, 0.0016), (8, 0.012), (64, 0.098)]:
        level = levels[index]
        assert level.sigma.item() == pytest.approx(sigma, rel=0.05)
        gap = student_for(teacher, settings)(x_t, level) - teacher(x_t, level)
        # alpha x - sigma F of v, less (x - sigma F) / alpha of eps; F is below 1 here.
        assert gap.abs().max() < sigma**2 * (x_t.abs().max() + 1)


def test_a_named_student_is_the_preset_from_weights_of_the_seed():
    teacher = build_denoiser(named_network("digits") | {"prediction": "v"})
    settings = settings_for(step_schedule=(8, 4, 4, 1), student_network="digits_small", seed=5)
    state = start_distillation(teacher, settings, student_for(teacher, settings))
    expected = named_network("digits_small")
    expected["options"]["num_classes"] = 0
    assert state.new_student.config == expected
    assert torch.equal(weights(state.new_student), weights(build_denoiser(expected, 5)))
    assert torch.equal(weights(state.student), weights(teacher))


def test_a_named_student_of_a_teacher_with_classes_has_them_too():
    config = named_network("digits")
    config["options"]["num_classes"] = 10
    settings = settings_for(step_schedule=(8, 4, 4, 1), student_network="digits_small")
    student = student_for(build_denoiser(config), settings)
    assert student.config["options"]["num_classes"] == 10


# ---- It works -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "schedule", "steps"), [("TRACT", (64, 8, 1), 600), ("BTD", (8, 4, 2, 1), 450)]
)
def test_a_student_learns_its_teachers_flow_in_one_step(method, schedule, steps):
    settings = Distillation(
        train_images=128 * steps,
        batch_size=128,
        step_schedule=schedule,
        method=method,
        learning_rate=3e-3,
        clamp="none",
    )
    levels = cosine(schedule[0])
    torch.manual_seed(0)
    student = Denoiser(MLP(2, channels=64, num_blocks=2), "edm", 1.0)
    state = start_distillation(ORACLE, settings, student)
    run(state, settings, gaussian_points(4096), levels)
    eps = torch.randn(1024, 2, generator=torch.Generator().manual_seed(2))

    def distance(a, b):
        return (a - b).square().mean().sqrt().item()

    whole = sample(ORACLE, eps, levels, schedule[0])
    error = distance(sample(state.ema, eps, levels, 1), whole)
    # One step of the teacher itself misses by more than half a standard deviation.
    assert distance(sample(ORACLE, eps, levels, 1), whole) > 0.5
    assert error < 0.1  # a tenth of the data's spread; two seeds gave 0.04 and less


# ---- What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "tract"}, "method is 'tract': choose one of .*'TRACT'"),
        ({"loss_weight": "snr"}, "loss_weight is 'snr': choose one of .*'truncated_snr'"),
        ({"solver": "rk4"}, "solver is 'rk4': choose one of .*'heun'"),
        ({"self_ema": 1.0}, "self_ema is 1.0: use 0 or more and less than 1"),
        ({"self_ema": -0.1}, "self_ema is -0.1: use 0 or more and less than 1"),
        ({"ema_residual": 2.0}, "ema_residual is 2.0: use a share between 0 and 1"),
        ({"seed": -1}, "seed is -1: use 0 or more"),
        (
            {"train_images": 31},
            "train_images is 31, less than .* 16 for each of 2 phases: use 32",
        ),
        ({"step_schedule": (8, 3, 1)}, "3 does not divide 8.*near divisors of 8 are 2 and 4"),
        ({"step_schedule": ()}, r"step_schedule is \[\]: give two entries or more"),
        ({"step_schedule": (8,)}, r"step_schedule is \[8\]: give two entries or more"),
        ({"step_schedule": (8, 1), "method": "BTD"}, r"BTD halves .*8>1 does not: .*'TRACT'"),
        (
            {"step_schedule": (8, 4, 1), "method": "consistency"},
            r"one phase, which ends at 1 step: use step_schedule \[8, 1\], or method 'TRACT'",
        ),
        ({"step_schedule": (8, 2), "method": "consistency"}, r"use step_schedule \[8, 1\]"),
        (
            {"step_schedule": (8, 4, 4, 1), "method": "consistency"},
            r"one phase, which ends at 1 step: use step_schedule \[8, 1\]",
        ),
        ({"step_schedule": (8, 8), "method": "consistency"}, r"use step_schedule \[8, 1\]"),
        ({"step_schedule": (8, 8, 1), "method": "BTD"}, "BTD halves .*8>1 does not"),
        ({"step_schedule": (8, 2, 1), "method": "BTD"}, "BTD halves .*8>2 does not"),
        (
            {"student_network": "digits_small", "step_schedule": (8, 4, 1)},
            r"student_network is 'digits_small', .*: repeat an entry .*, such as \[8, 4, 4, 1\]",
        ),
        ({"student_prediction": "v", "step_schedule": (8, 1)}, r"such as \[8, 8, 1\]"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_its_value_and_what_can(setting, message):
    with pytest.raises(ValueError, match=message):
        Distillation(**{"train_images": 96, "batch_size": 16, "step_schedule": (8, 4, 2)} | setting)


@pytest.mark.parametrize(
    ("grid", "count", "message"),
    [
        (16, 256, r"step_schedule is \[8, 4, 1\] but .* 16 steps: start with 16"),
        (8, 15, "batch_size is 16 but points has 15 samples: use 15 or less"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_the_first_step(grid, count, message):
    state = start_distillation(mlp(), settings_for())
    with pytest.raises(ValueError, match=message):
        distill(state, gaussian_points(count), cosine(grid), settings_for())


@pytest.mark.parametrize("schedule", [(8, 1), (8, 4), (8, 4, 4, 1)])
def test_an_eps_student_is_refused_for_few_steps_and_told_why(schedule):
    settings = settings_for(step_schedule=schedule)
    new_student = described("v") if len(schedule) > 2 else None  # comes after eps was shortened
    state = start_distillation(described("eps"), settings, new_student)
    message = (
        "predicts eps.* multiplied by sigma / alpha, 157: give student 'v' .* repeat the first"
    )
    with pytest.raises(ValueError, match=message):
        distill(state, POINTS, ddpm_linear(1000)[torch.arange(0, 1001, 125)], settings)


def test_an_eps_newcomer_is_refused_as_well_unless_it_shortens_nothing():
    settings = settings_for(step_schedule=(8, 4, 4, 1))
    state = start_distillation(described("v"), settings, described("eps"))
    with pytest.raises(ValueError, match="the student predicts eps"):
        distill(state, POINTS, cosine(8), settings)
    settings = settings_for(step_schedule=(8, 4, 4))
    state = start_distillation(described("v"), settings, described("eps"))
    assert len(run(state, settings)) == settings.num_steps


def test_a_newcomer_that_does_not_fit_the_data_is_refused_before_the_first_step():
    settings = settings_for(step_schedule=(8, 4, 4, 1), student_network="digits_small")
    teacher = described("v")
    state = start_distillation(teacher, settings, student_for(teacher, settings))
    with pytest.raises(ValueError, match="points has samples of shape .*choose another network"):
        distill(state, POINTS, cosine(8), settings)


@pytest.mark.parametrize(("method", "schedule"), [("consistency", (8, 8, 1)), ("BTD", (8, 8, 4))])
def test_equal_steps_are_no_shortening_that_a_method_could_refuse(method, schedule):
    settings = settings_for(method, step_schedule=schedule)
    run(start_distillation(ORACLE, settings, mlp()), settings)


def test_equal_steps_need_a_network_to_take_over():
    settings = settings_for(step_schedule=(8, 4, 4, 1))
    with pytest.raises(ValueError, match="4>4 repeats a .*: give a student, or omit"):
        start_distillation(mlp(), settings)


def test_a_student_of_two_outputs_teachers_stays_like_them():
    teacher = described("eps")
    teacher.prediction = "x0_eps"
    settings = settings_for(step_schedule=(8, 8, 1), student_prediction="v")
    with pytest.raises(
        ValueError, match="student_prediction is 'v', but the teacher predicts both"
    ):
        student_for(teacher, settings)


def test_a_named_student_needs_a_teacher_with_a_description():
    settings = settings_for(step_schedule=(8, 8, 1), student_prediction="v")
    with pytest.raises(ValueError, match="student_prediction 'v', .* has none: give start_dist"):
        student_for(mlp(), settings)


def test_a_teacher_that_is_no_network_cannot_come_before_the_newcomer():
    with pytest.raises(ValueError, match="not a network to start from: .* in the first phase"):
        start_distillation(ORACLE, settings_for(step_schedule=(8, 4, 4, 1)), mlp())


def test_a_teacher_that_is_no_network_needs_a_student():
    with pytest.raises(ValueError, match="not a network to start from: give a student"):
        start_distillation(ORACLE, settings_for())
