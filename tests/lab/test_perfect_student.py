"""Students that learn perfectly: what they know after some rounds, against walks of the teacher."""

import itertools

import pytest
import torch

from tract.lab.perfect_student import PerfectStudent, shared_rounds
from tract.levels import cosine, karras
from tract.methods import closure_target
from tract.oracle import Mixture
from tract.phases import parse_schedule
from tract.samplers import sample
from tract.step import closure_weight, ddim_step

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.5]], dtype=torch.float64)
TEACHER = Mixture(MEANS, std=0.2)
GRID = 16


@pytest.fixture(params=[cosine, karras], ids=["VP", "VE"])
def levels(request):
    return request.param(GRID)


@pytest.fixture
def eps(generator):
    return torch.randn(20, 2, generator=generator, dtype=torch.float64)


def walk(levels, schedule, rounds, eps):
    return PerfectStudent(TEACHER, levels, parse_schedule(schedule), rounds).walk(eps)


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [([16, 4, 1], [4, 4]), ([16, 1], [15]), ([16, 8, 4, 2, 1], [1] * 4), ([16, 4, 2], [9, 9])],
)
def test_with_a_round_for_every_step_of_a_group_it_ends_where_the_teachers_steps_do(
    levels, eps, schedule, rounds
):
    ours, theirs = walk(levels, schedule, rounds, eps)[-1], sample(TEACHER, eps, levels, GRID)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [[16, 4, 1], [16, 1], [16, 4]])
def test_without_rounds_it_is_the_teacher_with_few_steps(levels, eps, schedule):
    ours = walk(levels, schedule, [0] * (len(schedule) - 1), eps)
    theirs = sample(TEACHER, eps, levels, schedule[-1])
    torch.testing.assert_close(ours[-1], theirs, rtol=1e-9, atol=1e-9)
    assert len(ours) == schedule[-1] + 1


def test_in_a_round_it_learns_the_target_that_a_distillation_has(levels, eps):
    """The definition itself: a self-teacher that is the student of the round before."""

    def student(rounds):
        def x0(x_t, i_t):
            if rounds == 0:
                return TEACHER(x_t, levels[i_t])
            t, u, s = levels[i_t], levels[i_t - 1], levels[(i_t - 1) // 8 * 8]
            second = student(rounds - 1)
            return closure_target(TEACHER, lambda x, *_: second(x, i_t - 1), x_t, t, u, s)

        return x0

    for rounds in (1, 3, 7):
        x = levels[-1].sigma * eps
        for i_t, i_s in itertools.pairwise([16, 8, 0]):
            x = ddim_step(x, student(rounds)(x, i_t), levels[i_t], levels[i_s])
        ours = walk(levels, [16, 2], [rounds], eps)
        torch.testing.assert_close(ours[-1], x, rtol=1e-9, atol=1e-9)
        assert len(ours) == 1 + 2 * (rounds + 1)


def test_what_a_later_phase_learns_is_a_step_of_the_student_before(levels, eps):
    """Two rounds, 16>4, then one, 4>1: a step of that student, and its leap over three more."""
    t, s = levels[16], levels[12]
    x_t = t.sigma * eps
    x_u = ddim_step(x_t, TEACHER(x_t, t), t, levels[15])
    x_v = ddim_step(x_u, TEACHER(x_u, levels[15]), levels[15], levels[14])
    landed = ddim_step(x_v, TEACHER(x_v, levels[14]), levels[14], s)
    ours = walk(levels, [16, 4, 1], [2, 1], eps)
    torch.testing.assert_close(ours[1], landed, rtol=1e-9, atol=1e-9)
    x0 = walk(levels, [16, 4, 1], [2, 1], eps)[2]  # the leap to the clean end shows its x0
    t, u, v, s = (levels[i] for i in (12, 11, 10, 8))
    x = landed
    first = TEACHER(x, t)
    x_u = ddim_step(x, first, t, u)
    second = TEACHER(x_u, u)
    leap = TEACHER(ddim_step(x_u, second, u, v), v)
    both = torch.lerp(leap, second, closure_weight(u, v, s))
    expected = levels[0].alpha * torch.lerp(both, first, closure_weight(t, u, s))
    torch.testing.assert_close(
        x0, expected + levels[0].sigma / t.sigma * (x - t.alpha * expected), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("rounds", "phases", "expected"),
    [(64, 2, [32, 32]), (5, 3, [2, 2, 1]), (1, 3, [1, 0, 0]), (0, 2, [0, 0])],
)
def test_rounds_are_shared_among_phases(rounds, phases, expected):
    assert shared_rounds(rounds, phases) == expected
