"""Previews tell the truth about a run, in full float32, and in few steps."""

from types import SimpleNamespace

import pytest
import torch
from helpers import allow_tf32, task_in

from tract.data import to_uint8
from tract.denoiser import Denoiser, clamped
from tract.experiments.measure import Distance, sample_noise
from tract.experiments.preview import (
    MEANWHILE,
    PHASE_METRIC,
    Preview,
    distance_to_data,
    level_errors,
    preview_steps,
)
from tract.metrics.distances import frechet_distance, moments_of
from tract.samplers import sample
from tract.seeds import Stream, generator_for
from tract.settings import Distillation, Training
from tract.step import add_noise

SETTINGS = Distillation(step_schedule=(16, 4, 1), train_images=96, batch_size=4, seed=1)


@pytest.fixture
def experiment(tmp_path):
    return task_in(tmp_path, SETTINGS).experiment


@pytest.fixture
def whole(experiment):
    return experiment, experiment.distill(SETTINGS)


def test_errors_by_level_are_those_of_a_plain_loop(experiment):
    settings = Distillation(
        step_schedule=(16, 8, 8, 1),
        train_images=96,
        batch_size=4,
        clamp="all",
        student_network="digits_small",
    )
    state, _, _ = experiment.start(settings)
    state.phase = 1  # of equal steps: the target is what the teacher says
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter += 0.05
    places, errors = level_errors(experiment, settings, state)
    assert list(places) == [2, 4, 6, 8, 10, 12, 14, 16]
    generator = generator_for("cpu", settings.seed, Stream.SAMPLES, 0)
    x0, _ = experiment.data.batch(32, generator)
    eps = torch.randn(x0.shape, generator=generator)
    levels = experiment.grid(settings)
    with torch.no_grad():
        for k, place in enumerate(places):
            rows = slice(4 * k, 4 * k + 4)
            t = levels[torch.full((4,), int(place))]
            x_t = add_noise(x0[rows], eps[rows], t)
            difference = state.student(x_t, t) - state.teacher(x_t, t).clamp(-1, 1)
            assert errors[k] == pytest.approx(difference.square().mean().item(), rel=1e-4)


def test_diagnostics_are_float32_in_full(whole, monkeypatch):
    experiment, student = whole
    metric = distance_to_data(experiment, SETTINGS, "pixels")
    seen = allow_tf32(monkeypatch, Denoiser, "forward")
    state, _, _ = experiment.start(SETTINGS)
    level_errors(experiment, SETTINGS, state)
    sample_noise(experiment, student, experiment.levels, 1, 2, **MEANWHILE)
    metric(student)
    assert len(seen) > 3 and not any(seen)


def test_a_run_that_stops_at_a_measured_step_has_its_distance(experiment, tmp_path):
    run = experiment.run(SETTINGS)
    run.folder = tmp_path
    watched = Preview(experiment, run, lambda *_: 2.0, metric_every=1).watch(run.records)
    next(watched)
    watched.close()
    assert (tmp_path / PHASE_METRIC).read_text() == '{"step": 1, "nfe": 4, "metric": 2.0}\n'


def test_students_of_many_steps_are_sampled_in_few_that_divide_them():
    steps = Distillation(step_schedule=(360, 90, 10, 1), train_images=10**6)
    states = [SimpleNamespace(phase=phase) for phase in range(3)]
    experiment = SimpleNamespace(teacher_steps=360)
    found = [preview_steps(experiment, steps, state) for state in states]
    assert found == [(90, 6), (10, 5), (1, 1)]


def test_the_metric_is_the_distance_that_is_measured_at_the_end(whole):
    experiment, student = whole
    levels = experiment.grid(SETTINGS)
    x = sample(clamped(student), experiment.noise[0], levels, 1)
    distance = Distance(experiment, "pixels")
    expected = frechet_distance(moments_of(distance.extract(to_uint8(x))), distance.reference)
    found = distance_to_data(experiment, SETTINGS, "pixels")(student)
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(sample_noise(experiment, student, levels, 1, 5), x[:5], atol=1e-5)


def test_a_teachers_errors_by_level_are_of_the_data(experiment):
    settings = Training(train_images=64, batch_size=4, seed=3)
    state, *_ = experiment.start(settings, "digits_small")
    places, errors = level_errors(experiment, settings, state)
    assert list(places) == [2, 4, 6, 8, 10, 12, 14, 16]
    generator = generator_for("cpu", settings.seed, Stream.SAMPLES, 0)
    x0, _ = experiment.data.batch(32, generator)
    x_t = add_noise(x0, torch.randn(x0.shape, generator=generator), experiment.levels[16])
    with torch.no_grad():  # the last level's are the last four images
        predicted = state.ema(x_t[28:], experiment.levels[torch.full((4,), 16)])
    assert errors[-1] == pytest.approx((predicted - x0[28:]).square().mean().item(), rel=1e-3)
