"""Growing teacher grids: what is accepted, which grid is in use when, and a run through them."""

import math

import pytest
import torch
from helpers import assert_identical, everything, weights

from tract.data import Data
from tract.denoiser import Denoiser
from tract.distill import distill, start_distillation
from tract.levels import cosine
from tract.networks.mlp import MLP
from tract.networks.weights import load_state, save_state
from tract.optimize import learning_rate
from tract.oracle import Gaussian
from tract.phases import Phase, first_grid, format_schedule, parse_schedule
from tract.samplers import sample
from tract.settings import Distillation

# ---- Schedules ----------------------------------------------------------------------------------


def test_a_phase_has_a_part_for_each_of_its_grids():
    first, second = parse_schedule([[4, 8, 32], 2, 1])
    assert str(first) == "4<8<32>2"
    assert str(second) == "2>1"
    assert first.parts == [Phase(32, 4, 2), Phase(32, 8, 2), Phase(32, 32, 2)]
    assert [(p.stride, p.segment) for p in first.parts] == [(8, 2), (4, 4), (1, 16)]
    assert second.parts == [second] == [Phase(32, 2, 1)]


def test_a_list_of_one_grid_is_that_grid():
    assert parse_schedule([[32], 1]) == parse_schedule([32, 1])
    assert format_schedule([[32], 1]) == "32>1"


def test_schedules_are_written_and_begin_with_the_finest_grid():
    assert format_schedule([1024, 32, 1]) == "1024>32>1"
    assert (
        format_schedule([[4, 8, 32], 2, 1]) == format_schedule(((4, 8, 32), 2, 1)) == "4<8<32>2>1"
    )
    assert first_grid([[4, 8, 32], 1]) == 32
    assert first_grid([1024, 32, 1]) == 1024


@pytest.mark.parametrize(
    ("schedule", "problem", "remedy"),
    [
        ([[8, 4], 1], "4 does not refine that of 8", "each number in the list must divide"),
        ([[4, 4], 1], "4 does not refine that of 4", "divide the next"),
        ([[4, 6], 1], "6 does not refine that of 4", "divide the next"),
        ([[-4, 4], 1], "an entry is -4", "use 1 or more"),
        ([[4, 8], 4], "has 4 steps, .* multiple of the student's 4", "a multiple of 4, 8 or more"),
        ([[2, 8], 4], "has 2 steps, .* multiple of the student's 4", "a multiple of 4, 8 or more"),
        ([[1, 8], 1], "has 1 steps, .* multiple of the student's 1", "a multiple of 1, 2 or more"),
        ([[3, 12], 2], "has 3 steps, .* multiple of the student's 2", "a multiple of 2, 4 or more"),
        ([[4, 8], 3], "3 does not divide 8", "near divisors of 8 are 2 and 4"),
        ([1024, [8, 32], 1], "only the first entry can be a list", "use a number there"),
        ([[4, "8"], 1], "an entry is '8'", "use a whole number"),
        ([[], 1], "an empty list is not a grid", "omit it"),
        ([[4, 8]], r"\[\[4, 8\]\]", r"two entries or more, such as \[8, 1\]"),
    ],
)
def test_impossible_growth_is_refused_with_the_reason(schedule, problem, remedy):
    with pytest.raises(ValueError, match=f"(?=.*{problem})(?=.*{remedy})"):
        parse_schedule(schedule)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "BTD"}, "BTD halves the steps in every phase, but 4<8<16>1 does not"),
        (
            {"train_images": 47},
            "train_images is 47, less than one batch of 16 for each of 3 grids: use 48",
        ),
    ],
)
def test_a_setting_that_cannot_grow_is_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        Distillation(
            **{"train_images": 96, "batch_size": 16, "step_schedule": [[4, 8, 16], 1]} | setting
        )


@pytest.mark.parametrize("steps", [3, 9, 10, 100])
def test_every_grid_has_as_many_steps_to_one(steps):
    (phase,) = parse_schedule([[4, 8, 16], 1])
    used = [phase.part_at(done, steps).teacher_steps for done in range(steps)]
    assert used == sorted(used)
    assert [used.count(n) for n in (4, 8, 16)] == pytest.approx([steps / 3] * 3, abs=1)


# ---- The loop -----------------------------------------------------------------------------------

ORACLE = Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[1.0, 0.6], [0.6, 0.5]]))
NOISE = torch.randn(256, 2, generator=torch.Generator().manual_seed(1))
POINTS = Data("points", NOISE @ torch.linalg.cholesky(ORACLE.covariance).T + ORACLE.mean)
LEVELS = cosine(16)


def settings_for(**more):
    options = {"train_images": 16 * 12, "batch_size": 16, "learning_rate": 1e-2, "clamp": "none"}
    return Distillation(**{"step_schedule": [[4, 8, 16], 2, 1], **options, **more})


def mlp(channels=16, num_blocks=1):
    torch.manual_seed(0)
    return Denoiser(MLP(2, channels=channels, num_blocks=num_blocks), "edm", 1.0)


class Watched:
    """A teacher that remembers the levels at which it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, x_t, level, labels=None):
        self.asked.append((LEVELS.sigma[:, None] - level.sigma).abs().argmin(0).tolist())
        return ORACLE(x_t, level)


def test_the_teacher_is_asked_on_each_grid_in_turn():
    teacher = Watched()
    settings = settings_for(train_images=16 * 30, step_schedule=[[4, 8, 16], 1])
    records = list(distill(start_distillation(teacher, settings, mlp()), POINTS, LEVELS, settings))
    assert [r.phase for r in records] == ["4>1"] * 10 + ["8>1"] * 10 + ["16>1"] * 10
    for part, stride in enumerate((4, 2, 1)):
        asked = {i for step in teacher.asked[10 * part : 10 * part + 10] for i in step}
        assert asked == set(range(stride, 17, stride))


def test_nothing_restarts_when_the_grid_grows():
    settings = settings_for(self_ema=0.7, step_schedule=[[4, 8, 16], 1])
    state = start_distillation(ORACLE, settings, mlp())
    student, students = state.student, []
    for _ in distill(state, POINTS, LEVELS, settings):
        assert state.student is student
        students.append(weights(student).double())
        decay = 0.7
        shares = [decay ** (len(students) - i) for i in range(1, len(students) + 1)]
        expected = sum(a * w for a, w in zip(shares, students, strict=True)) / sum(shares)
        # A few float32 roundings of weights of order 1.
        found = weights(state.self_teacher).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert {int(m["step"]) for m in state.optimizer.state_dict()["state"].values()} == {12}


def test_growing_grids_end_where_their_phase_ends():
    settings = settings_for()
    records = list(distill(start_distillation(mlp(), settings), POINTS, LEVELS, settings))
    assert [r.phase for r in records] == ["4>2"] * 2 + ["8>2"] * 2 + ["16>2"] * 2 + ["2>1"] * 6


def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(tmp_path):
    settings = settings_for(train_images=16 * 2 * 60)
    whole = start_distillation(mlp(), settings)
    records = list(distill(whole, POINTS, LEVELS, settings))
    assert {r.phase for r in records} == {"4>2", "8>2", "16>2", "2>1"}
    for steps in (0, 7, 20, 33, 60, 61):
        first = start_distillation(mlp(), settings)
        for _, _ in zip(range(steps), distill(first, POINTS, LEVELS, settings), strict=False):
            pass
        save_state(tmp_path / "state", first, {})
        second = start_distillation(mlp(), settings)
        load_state(tmp_path / "state", second)
        assert list(distill(second, POINTS, LEVELS, settings)) == records[steps:]
        assert_identical(everything(second), everything(whole))


def test_a_student_learns_its_teachers_flow_from_growing_grids():
    rate = {"train_images": 128 * 600, "batch_size": 128, "learning_rate": 1e-3}
    settings = settings_for(**rate, step_schedule=[[4, 8, 16], 1])
    data = Data("points", POINTS.samples.repeat(16, 1))
    state = start_distillation(ORACLE, settings, mlp(channels=64, num_blocks=2))
    for _ in distill(state, data, LEVELS, settings):
        pass
    eps = torch.randn(1024, 2, generator=torch.Generator().manual_seed(2))
    whole, coarse = (sample(ORACLE, eps, LEVELS, steps) for steps in (16, 4))
    found = sample(state.ema, eps, LEVELS, 1)
    error, behind = (torch.dist(found, x).item() / x.numel() ** 0.5 for x in (whole, coarse))
    assert error < 0.1  # a tenth of the data's spread
    assert error < behind  # it followed the teacher to the finest grid


# ---- Cooldown -----------------------------------------------------------------------------------


def test_the_rate_falls_to_zero_over_the_last_share_of_each_phase():
    settings = settings_for(train_images=16 * 20, step_schedule=[8, 2, 1], cooldown=0.5)
    rates = []
    state = start_distillation(mlp(), settings)
    for _ in distill(state, POINTS, cosine(8), settings):
        rates.append(state.optimizer.param_groups[0]["lr"] / 1e-2)
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2] * 2)


def test_the_rate_rises_over_the_first_images_of_the_run_alone():
    settings = settings_for(train_images=16 * 20, step_schedule=[8, 2, 1], warmup=64)
    rates = [learning_rate(settings, step) / settings.learning_rate for step in range(20)]
    assert rates == [0.25, 0.5, 0.75] + [1.0] * 17


@pytest.mark.parametrize("cooldown", [-0.1, 1.1, True, math.nan, "half"])
def test_a_cooldown_that_is_no_share_is_refused(cooldown):
    with pytest.raises(ValueError, match="cooldown is .*: use a share from 0 to 1"):
        settings_for(cooldown=cooldown)
