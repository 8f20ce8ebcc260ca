"""Ablations on the plane: an exact teacher, and rows that say what was measured against what."""

from dataclasses import replace

import pytest
import torch

from tract.experiments.results import read_results
from tract.levels import cosine, karras
from tract.phases import format_schedule
from tract.samplers import heun_x0, sample
from tract.studies import ablations
from tract.studies import spiral as plane
from tract.studies.ablations import Study
from tract.studies.spiral import METRIC, exact_flow, run_missing_on_plane, spiral

STUDY = Study("spiral", [0, 1], 512, metric=METRIC, base={"clamp": "none", "batch_size": 64})


@pytest.fixture
def comparisons(monkeypatch):
    """One group of a fixed and a growing grid; a short way to the exact flow and to a start."""
    recipes = {"fixed 4": {"step_schedule": [4, 1]}, "grown": {"step_schedule": [[2, 4], 1]}}
    monkeypatch.setattr(ablations, "ALL", {"grids": recipes})
    monkeypatch.setattr(plane, "FLOW_STEPS", 64)
    monkeypatch.setattr(plane, "NUM_POINTS", 128)
    start = plane.beginning.__wrapped__("cosine", images=256, batch=64)
    monkeypatch.setattr(plane, "beginning", lambda noise_schedule: start)
    exact_flow.cache_clear()
    yield ["grids"]
    exact_flow.cache_clear()


def test_the_spirals_points_lie_where_its_exact_denoiser_says():
    teacher, data = spiral()
    nearest = torch.cdist(data.samples, teacher.means).min(1).values
    # Two coordinates of standard deviation 0.05 around a mean; another may be nearer.
    assert 0.04 < nearest.square().mean().sqrt() <= 0.05 * 2**0.5
    level = cosine(64)[torch.tensor(1)]  # hardly any noise
    torch.testing.assert_close(teacher(data.samples, level), data.samples, rtol=0, atol=0.05)


def test_only_what_was_not_measured_is_run_and_rows_say_what_they_are(
    comparisons, tmp_path, capsys
):
    path = tmp_path / "results.csv"
    run_missing_on_plane(STUDY, comparisons, path)
    assert "4 runs on the plane, 0 of them" in capsys.readouterr().out
    table = read_results(path)
    students = table[table["method"] == "TRACT"]
    assert len(students) == 2 * 2 * 2
    assert set(students["schedule"]) == {"4>1", format_schedule([[2, 4], 1])}
    assert set(students["metric"]) == {METRIC, "rmse_to_rollout"}
    assert set(students["images"]) == {512}
    assert set(table["teacher"]) == {"exact"}
    assert list(STUDY.rows(table, "grids")["recipe"]) == ["fixed 4"] * 2 + ["grown"] * 2
    run_missing_on_plane(STUDY, comparisons, path)
    assert "4 runs on the plane, 4 of them" in capsys.readouterr().out
    assert read_results(path).equals(table)


def test_the_teachers_row_is_its_distance_to_the_exact_flow(comparisons, tmp_path):
    path = tmp_path / "results.csv"
    run_missing_on_plane(STUDY, comparisons, path)
    (own,) = read_results(path).query("method == 'teacher'").itertuples()
    teacher, data = spiral()
    eps = plane.fixed_noise(data, 128, seed=0)[0]
    found, exact = sample(teacher, eps, cosine(4), 4), exact_flow("cosine")
    assert own.nfe == 4
    assert own.value == pytest.approx((found - exact).square().mean().sqrt().item(), abs=1e-6)


def test_a_student_is_compared_with_where_its_own_teacher_leads(comparisons, tmp_path, monkeypatch):
    heun = {"fixed 4": {"step_schedule": [4, 1], "solver": "heun"}}
    monkeypatch.setattr(ablations, "ALL", {"grids": heun})
    compared = []
    monkeypatch.setattr(plane, "rmse", lambda x, truth: compared.append(truth) or 0.0)
    study = replace(STUDY, seeds=[0], noise_schedule="karras")
    run_missing_on_plane(study, comparisons, tmp_path / "results.csv")
    teacher, data = spiral()
    eps = plane.fixed_noise(data, 128, seed=0)[0]
    rollout = sample(teacher, eps, karras(4), 4, solver=heun_x0)
    assert [torch.equal(truth, rollout) for truth in compared] == [False, True]
    table = read_results(tmp_path / "results.csv")
    assert set(table["method"]) == {"TRACT"}  # a teacher's row is of DDIM, as all are sampled
    assert set(table["device"]) == {"cpu"}
