"""A run that is watched is the run that is not; it stops at a click, and goes on from there."""

import asyncio
import io
import json
import time

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import allow_tf32, weights
from PIL import Image
from tiny import files, teacher
from tract.lab.probes import distance_to_data, students_samples, students_steps, target_errors

from tract.cli.main import main
from tract.data import to_uint8
from tract.denoiser import Denoiser, clamped
from tract.experiments.card import claim
from tract.experiments.experiment import Experiment, run_name
from tract.experiments.history import history
from tract.experiments.measure import Distance
from tract.experiments.run import Checkpointing
from tract.lab import monitor
from tract.lab.curves import Curves, image_strip
from tract.metrics.distances import frechet_distance, moments_of
from tract.networks.weights import save_model
from tract.samplers import sample
from tract.seeds import Stream, generator_for
from tract.settings import Distillation
from tract.step import add_noise

SETTINGS = Distillation(step_schedule=(16, 4, 1), train_images=96, batch_size=4, seed=1)


def experiment_in(folder):
    made = Experiment(folder, "digits", teacher_steps=16, reference_steps=4, num_samples=24)
    (made.folder / "teacher").mkdir(parents=True)
    save_model(made.folder / "teacher" / "model.safetensors", teacher(), {"method": "teacher"})
    return made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An experiment with a student that nobody watched."""
    experiment = experiment_in(tmp_path_factory.mktemp("run"))
    return experiment, experiment.distill(SETTINGS)


@pytest.fixture
def experiment(tmp_path):
    return experiment_in(tmp_path / "run")


@pytest.fixture
def panels(monkeypatch):
    """Somebody can click, on the panels that are shown."""
    shown = []

    async def somebody():
        return True

    monkeypatch.setattr(monitor, "clicks_arrive", somebody)
    monkeypatch.setattr(monitor.Panel, "show", lambda panel: shown.append(panel))
    return shown


def assert_same(experiment, student, whole):
    assert torch.equal(weights(student), weights(whole[1]))
    ours, theirs = (
        history(e.folder / run_name(SETTINGS)).drop(columns="seconds")
        for e in (experiment, whole[0])
    )
    assert ours.equals(theirs)


def test_where_nobody_can_click_a_bar_is_shown_and_the_run_is_the_same(experiment, whole, capsys):
    student = asyncio.run(monitor.distill(experiment, SETTINGS))
    assert "24/24" in capsys.readouterr().out
    assert_same(experiment, student, whole)
    again = asyncio.run(monitor.distill(experiment, SETTINGS))
    assert "finished before" in capsys.readouterr().out
    assert torch.equal(weights(again), weights(student))


def test_it_stops_at_a_click_and_goes_on_to_the_same_end(experiment, whole, panels, monkeypatch):
    take, seen = monitor.Panel.take, []

    def take_and_click(panel, record, run):
        take(panel, record, run)
        seen.append(record.step)
        if record.step == 5:
            panel.buttons["Stop"].click()

    monkeypatch.setattr(monitor.Panel, "take", take_and_click)

    async def person():
        run = asyncio.ensure_future(monitor.distill(experiment, SETTINGS))
        while not panels or panels[0].buttons["Resume"].disabled:
            await asyncio.sleep(0.01)
        (panel,) = panels
        assert "saved at step 6" in panel.status.value
        assert panel.buttons["Stop"].disabled
        panel.buttons["Resume"].click()
        student = await run
        assert "finished after 24 steps" in panel.status.value
        assert all(button.disabled for button in panel.buttons.values())
        return student

    student = asyncio.run(person())
    assert seen == list(range(1, 25))
    assert_same(experiment, student, whole)


def test_who_leaves_can_run_the_cell_again(experiment, whole, panels, monkeypatch):
    monkeypatch.setattr(
        monitor.Panel, "take", lambda panel, record, run: panel.buttons["Stop"].click()
    )

    async def person():
        run = asyncio.ensure_future(monitor.distill(experiment, SETTINGS))
        while not panels or panels[0].buttons["Leave"].disabled:
            await asyncio.sleep(0.01)
        panels[0].buttons["Leave"].click()
        with pytest.raises(KeyboardInterrupt):
            run.result() if run.done() else await run

    with pytest.raises(KeyboardInterrupt):  # asyncio passes it on as well
        asyncio.run(person())
    monkeypatch.undo()
    assert_same(experiment, experiment.distill(SETTINGS), whole)


def test_drawing_takes_its_share_of_the_time_and_no_more(experiment, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])

    def drawn(panel, run):
        clock[0] += 0.5
        draws.append(clock[0])

    draws = []
    monkeypatch.setattr(monitor.Panel, "_draw_curves", drawn)
    monkeypatch.setattr(monitor.Panel, "_draw_samples", drawn)
    run = experiment.distillation(SETTINGS)
    panel = monitor.Panel(experiment, SETTINGS, run)
    record = next(iter(run))
    for _ in range(2000):
        clock[0] += 0.1
        panel.take(record, run)
    assert panel.clock == pytest.approx(clock[0], rel=0.02)
    assert panel.spent == pytest.approx(0.5 * len(draws))
    assert 0.7 < panel.spent / (monitor.SHARE * panel.clock) <= 1


def test_the_panel_says_how_far_and_how_fast(experiment, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])
    run = experiment.distillation(SETTINGS)
    panel = monitor.Panel(experiment, SETTINGS, run)
    for record in run:
        clock[0] += 0.5
        panel.take(record, run)
        if record.step == 12:
            assert "step 12 of 24" in panel.numbers.value
            assert "phase 16&gt;4 &nbsp; 8 images/s &nbsp; 6 s left" in panel.numbers.value
            assert "learning rate 0.001" in panel.numbers.value
            assert panel.bar.value == 12
            break


def test_errors_by_level_are_those_of_a_plain_loop(experiment):
    settings = Distillation(
        step_schedule=(16, 8, 8, 1), train_images=96, batch_size=4, student_network="digits_small"
    )
    state, _, _ = experiment.student_run(settings)
    state.phase = 1  # of equal steps: the target is what the teacher says
    with torch.no_grad():
        for parameter in state.student.parameters():
            parameter += 0.05
    places, errors = target_errors(experiment, settings, state)
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
    state, _, _ = experiment.student_run(SETTINGS)
    target_errors(experiment, SETTINGS, state)
    students_samples(experiment, SETTINGS, student, 1, 2)
    metric(student)
    assert len(seen) > 3 and not any(seen)


def test_students_of_many_steps_are_sampled_in_few_that_divide_them():
    steps = Distillation(step_schedule=(360, 90, 10, 1), train_images=10**6)
    assert [students_steps(steps, phase) for phase in range(3)] == [6, 5, 1]


def test_the_metric_is_the_distance_that_is_measured_at_the_end(whole):
    experiment, student = whole
    x = sample(clamped(student), experiment.noise[0], experiment.grid(SETTINGS), 1)
    distance = Distance(experiment, "pixels")
    expected = frechet_distance(moments_of(distance.extract(to_uint8(x))), distance.reference)
    found = distance_to_data(experiment, SETTINGS, "pixels")(student)
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(students_samples(experiment, SETTINGS, student, 1, 5), x[:5], atol=1e-5)


def test_a_run_is_measured_on_its_way_and_its_distances_are_drawn(experiment):
    metric = distance_to_data(experiment, SETTINGS, "pixels")
    experiment.distill(SETTINGS, Checkpointing(metric=metric, metric_every=8))
    panel = monitor.Panel(experiment, SETTINGS, experiment.distillation(SETTINGS))
    found = panel._distances()
    assert list(found["images_seen"]) == [32, 64, 96]
    assert (found["metric"] > 0).all()


def test_curves_move_with_what_they_are_given():
    curves = Curves(1000, [500], 16)
    none = pd.DataFrame(columns=["images_seen", "metric"], dtype=float)
    n = np.arange(1.0, 401.0)
    records = pd.DataFrame({"images_seen": n, "loss": n, "mse": 1 / n})
    first = curves.draw(records[:10], None, none)
    later = curves.draw(records, (torch.arange(1, 9), torch.ones(8)), none)
    assert first != later
    assert Image.open(io.BytesIO(first)).size == Image.open(io.BytesIO(later)).size
    x, loss = curves._lines[0].get_data()
    assert (len(x), x[0], list(loss)[-1]) == (200, 1.5, 399.5)  # means of two


def test_image_strips_show_every_pixel():
    images = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    picture = np.asarray(Image.open(io.BytesIO(image_strip([images, images], height=8))))
    assert picture.shape == (2 * 12, 2 * 12)
    assert np.array_equal(picture[2:10, 14:22], to_uint8(images)[1, 0].numpy())


def test_the_command_compares_steps_that_are_watched_and_not(tmp_path, monkeypatch, capsys):
    experiment = Experiment(tmp_path / "run", "digits", reference_steps=4, num_samples=24)
    experiment_in(experiment.folder)
    claim(experiment.folder / "experiment.json", experiment.card(), note={"data_dir": ""})
    take, watched = monitor.Panel.take, []

    def slow(panel, record, run):
        watched.append(record.step)
        time.sleep(0.05)
        take(panel, record, run)

    monkeypatch.setattr(monitor.Panel, "take", slow)
    before = files(experiment.folder)
    assert main(["overhead", str(experiment.folder), "--steps", "32", "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert watched == [*range(1, 9), *range(17, 25)]
    assert row["seconds_watched"] > 0.05
    assert row["seconds_share"] == pytest.approx(row["seconds_watched"] / row["seconds"] - 1)
    assert files(experiment.folder) == before
