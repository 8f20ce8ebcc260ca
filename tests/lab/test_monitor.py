"""The panel is a view of a directory: it shows what is there, and asks the run's process."""

import io
import json
import os
import time

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import weights
from PIL import Image
from tiny import teacher

from tract.data import to_uint8
from tract.experiments.experiment import Experiment
from tract.experiments.job import JOB, Task
from tract.experiments.results import COLUMNS, append_results
from tract.experiments.status import STOP, Status, process_of, read_status, write_status
from tract.lab import live, monitor, view
from tract.lab.curves import Curves, image_strip, panels_of
from tract.lab.monitor import NotFinished, Panel, train, watch
from tract.networks.weights import save_model
from tract.settings import Distillation

SETTINGS = Distillation(step_schedule=(16, 4, 1), train_images=96, batch_size=4, seed=1)


@pytest.fixture
def task(tmp_path):
    made = Experiment(tmp_path, "digits", teacher_steps=16, reference_steps=4, num_samples=24)
    (tmp_path / "teacher").mkdir()
    save_model(tmp_path / "teacher" / "model.safetensors", teacher(), {"method": "teacher"})
    return Task(made, SETTINGS, features="pixels", metric_every=6)


@pytest.fixture
def person(monkeypatch):
    """Somebody can click, and no process is started."""
    launched = []
    monkeypatch.setattr(monitor, "somebody_clicks", lambda: True)
    monkeypatch.setattr(monitor, "launch", launched.append)
    monkeypatch.setattr(monitor, "poll", lambda act, seconds: None)
    return launched


def active(folder, **more):
    folder.mkdir(exist_ok=True)
    more = {"num_steps": 24} | more
    write_status(folder, Status(more.pop("state", "running"), **process_of(os.getpid()), **more))


def test_where_nobody_can_click_it_is_trained_here_and_read_when_finished(task, capsys):
    (student,) = train([task]).results()
    assert read_status(task.folder).step == 24
    trainings = train([task])
    assert "finished before" in capsys.readouterr().out
    assert torch.equal(weights(trainings.results()[0]), weights(student))
    assert trainings.unchanged


def test_what_is_not_finished_is_said_in_one_line(task, person):
    trainings = train([task])
    with pytest.raises(NotFinished) as error:
        trainings.results()
    said = "TRACT 16>4>1 is not finished: press Start above, or wait; then run this cell again"
    assert error.value._render_traceback_() == [said]
    assert person == []


def test_the_buttons_are_those_of_the_state(task, person):
    panel = Panel(lambda: [task.folder], lambda: person.append("start"))
    assert (panel.start.description, panel.start.disabled) == ("Start", False)
    assert panel.stop.disabled
    panel.start.click()
    assert person == ["start"]
    active(task.folder, state="waiting", message="starting")
    panel.refresh()
    assert (panel.start.description, panel.start.disabled) == ("Running", True)
    assert "waiting, step 0 of 24: starting" in panel.view._numbers.value
    active(task.folder, step=12, phase="16>4", images_per_second=8.0, seconds_left=6.0)
    panel.refresh()
    assert (
        "running, step 12 of 24, phase 16&gt;4, 8 images/s, 6 s left" in panel.view._numbers.value
    )
    assert panel.view._bar.value == 12
    panel.stop.click()
    assert panel.stop.description == "Stopping"
    assert (task.folder / STOP).read_text() == str(os.getpid())
    write_status(task.folder, Status("stopped", step=13, num_steps=24))
    panel.refresh()
    assert panel.stop.disabled and panel.start.disabled  # nobody left a task to resume
    task.write()
    panel.refresh()
    assert (panel.start.description, panel.start.disabled) == ("Resume", False)
    write_status(task.folder, Status("running", step=13, pid=1, created=1.0, host=os.uname()[1]))
    panel.refresh()
    assert "failed" in panel.view._numbers.value
    assert "tract-bad" in panel.view._numbers.value
    assert not panel.start.disabled


def test_start_launches_what_is_not_finished_and_says_what_is_impossible(task, person):
    other = Task(
        task.experiment, Distillation(step_schedule=(16, 1), train_images=96, batch_size=4)
    )
    other.train()
    trainings = train([other, task])
    trainings.start()
    assert person == [[task.folder]]
    assert json.loads((task.folder / JOB).read_text())["features"] == "pixels"
    panel = Panel(trainings.folders, trainings.start)
    assert "1 of 2 runs finished" in panel.said.value
    (task.experiment.folder / "teacher" / "model.safetensors").unlink()
    panel.start.click()
    assert "teacher" in panel.problem.value


def test_any_run_is_watched_from_its_directory(task, person):
    task.train()
    watch(task.folder)
    with pytest.raises(FileNotFoundError, match="no run directory"):
        watch(task.folder / "nothing")
    shown = view.RunView(task.folder)
    assert "finished, step 24 of 24" in shown._numbers.value
    assert "As of step 24, phase 4&gt;1" in shown._curves.value
    assert shown._curves.value.count("<img") == 4
    assert 'alt="Weighted loss of TRACT, loss ' in shown._curves.value
    assert "student in 1 step, as of step 24, phase 4>1" in shown._samples.value.replace(
        "&gt;", ">"
    )
    width, height = Image.open(io.BytesIO(shown.picture())).size
    assert width == 1320 and height > 300


def test_distances_are_drawn_beside_the_teachers_and_the_best_run(task):
    row = dict.fromkeys(COLUMNS, "") | {"metric": "fd_pixels", "images": 0, "seed": 0}
    numbers = {("teacher", 4): 1.0, ("teacher", 1): 9.0, ("other", 1): 3.0, ("worse", 1): 5.0}
    rows = [row | {"run": run, "nfe": n, "value": v} for (run, n), v in numbers.items()]
    append_results(task.experiment.folder / "results.csv", rows)
    task.train()
    shown = view.RunView(task.folder)
    card = json.loads((task.folder / "card.json").read_text())
    series, lines = shown._distances(card)
    assert lines == {"teacher, 4 steps": 1.0, "teacher, 1 step": 9.0, "best other run": 3.0}
    assert series["1 step"][0] == [24, 48, 72, 96]
    assert series["phase's 4 steps"][0] == [24, 48]


def test_pictures_are_drawn_every_few_seconds_whatever_drawing_costs(task, monkeypatch):
    task.train()
    clock, drawn = [100.0], []
    monkeypatch.setattr(view.time, "monotonic", lambda: clock[0])
    shown = view.RunView(task.folder)

    def draw():
        clock[0] += 0.9  # as on a busy machine
        drawn.append(clock[0])

    monkeypatch.setattr(shown, "_draw", draw)
    for step in range(100):
        clock[0] += 0.5
        monkeypatch.setattr(view, "read_status", lambda folder, step=step: Status("running", step))
        shown.refresh()
    gaps = np.diff(drawn)
    assert gaps.max() < 5.5
    assert gaps.min() > 4


def test_a_cell_that_is_executed_again_leaves_no_widgets(task, person):
    train([task])
    before = len(ipywidgets.widgets.widget._instances)
    for _ in range(3):
        train([task])
    assert len(ipywidgets.widgets.widget._instances) == before


def test_a_timer_ends_with_its_event():
    calls = []
    ended = live.poll(lambda: calls.append(1) is None, 0.01)
    while len(calls) < 3:
        time.sleep(0.01)
    ended.set()
    time.sleep(0.05)
    count = len(calls)
    time.sleep(0.05)
    assert len(calls) == count


def test_curves_move_with_what_they_are_given_and_their_range_only_grows():
    curves = Curves(1000, [500], 16)
    n = np.arange(1.0, 401.0)
    records = pd.DataFrame({"images_seen": n, "loss": n, "mse": 1 / n})
    first = curves.draw(records, None, {}, {})
    before = curves._axes[0].get_ylim()
    errors = torch.arange(1, 9), torch.ones(8)
    distances = {"1 step": ([10.0, 20.0], [5.0, 4.0])}
    later = curves.draw(records[:10], errors, distances, {"teacher, 1 step": 9.0})
    low, high = curves._axes[0].get_ylim()
    assert low <= before[0] and high >= before[1]
    assert first.shape == later.shape
    assert [Image.open(io.BytesIO(png)).size for png in panels_of(later)] == 4 * [(330, 240)]
    curves.draw(records, None, {}, {})
    x, loss = curves._lines[0].get_data()
    assert (len(x), x[0], list(loss)[-1]) == (200, 1.5, 399.5)  # means of two


def test_image_strips_show_every_pixel():
    images = torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    picture = image_strip([images, images], height=8)
    assert picture.shape == (2 * 12, 2 * 12)
    assert np.array_equal(picture[2:10, 14:22], to_uint8(images)[1, 0].numpy())
