"""The panel is a view of a directory: it shows what is there, and asks the run's process."""

import io
import json
import math
import os
import threading
import time

import ipywidgets
import numpy as np
import pytest
import torch
from helpers import task_in, weights
from PIL import Image

from tract.experiments.job import JOB, Task
from tract.experiments.results import COLUMNS, append_results
from tract.experiments.status import STOP, Status, process_of, read_status, write_status
from tract.jobs.execute import WIDGET_VIEW
from tract.lab import live, monitor, view
from tract.lab.line_chart import Chart, Line, figure, svg
from tract.lab.monitor import NotFinished, Panel, train, watch
from tract.lab.style import METHOD_STYLES
from tract.networks.weights import write_tensors
from tract.settings import Distillation

SETTINGS = Distillation(step_schedule=(16, 4, 1), train_images=96, batch_size=4, seed=1)


@pytest.fixture
def task(tmp_path):
    return task_in(tmp_path, SETTINGS, metric_every=6)


@pytest.fixture
def person(monkeypatch):
    """Somebody can click, and no process is started."""
    launched = []
    for module in (monitor, live):
        monkeypatch.setattr(module, "somebody_clicks", lambda: True)
    monkeypatch.setattr(monitor, "launch", launched.append)
    monkeypatch.setattr(monitor, "stand_by", lambda: launched.append("stand by"))
    monkeypatch.setattr(live.LiveBox, "_live", lambda *given: None)
    return launched


def state(panel):
    """What the panel says of its run."""
    return panel.views.children[0]._state.value


def active(folder, **more):
    folder.mkdir(exist_ok=True)
    more = {"num_steps": 24} | more
    write_status(folder, Status(more.pop("state", "running"), **process_of(os.getpid()), **more))


def test_where_nobody_can_click_it_is_trained_here_and_read_when_finished(task, capsys):
    (student,) = train([task]).results()
    assert read_status(task.folder).step == 24
    trainings = train([task])
    assert "already finished" in capsys.readouterr().out
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
    panel = Panel(lambda: {task.folder: task.label}, lambda: person.append("start"))
    assert (panel.start.description, panel.start.disabled) == ("Start", False)
    assert panel.stop.disabled
    panel.tick()
    panel.start.click()
    assert person == ["stand by", "start"]
    active(task.folder, state="waiting", message="starting")
    panel.tick()
    assert person == ["stand by", "start"]
    assert (panel.start.description, panel.start.disabled) == ("Running", True)
    assert "waiting, step 0 of 24: starting" in state(panel)
    active(task.folder, step=12, phase="16>4", images_per_second=8.0, seconds_left=6.0)
    panel.refresh()
    assert "running, step 12 of 24, phase 16&gt;4, 8 images/s, 6 s left" in state(panel)
    assert 'max="24" value="12"' in state(panel)
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
    assert "failed" in state(panel)
    assert "tract-bad" in state(panel)
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
    panel = Panel(trainings.runs, trainings.start)
    assert ["finished" in view._state.value for view in panel.views.children] == [True, False]
    (task.experiment.folder / "teacher" / "model.safetensors").unlink()
    panel.start.click()
    assert "teacher" in panel.message.value


def test_any_run_is_watched_from_its_directory(task, person):
    task.train()
    watch(task.folder)
    with pytest.raises(FileNotFoundError, match="no run directory"):
        watch(task.folder / "nothing")
    samples = task.experiment.folder / "teacher" / "samples.safetensors"
    write_tensors(samples, {n: torch.zeros(24, 1, 8, 8) for n in ("1", "4")}, {})
    shown = view.RunView(task.folder)
    samples.write_bytes(b"")  # they may be large, and are read once
    shown._draw()
    assert "teacher, 4 steps" in shown._samples.value
    assert "finished, step 24 of 24" in shown._state.value
    assert "As of step 24, phase 4&gt;1" in shown._curves.value
    titles = ["weighted loss", "squared error of x0", "error by level", "distance to the data"]
    assert [chart.title for chart in shown._charts] == titles
    assert (
        "student, 1 step. From the same noise, as of step 24, phase 4&gt;1" in shown._samples.value
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
    drawn = shown._charts[3].drawn
    assert list(drawn["1 step"].x) == [24, 48, 72, 96]
    assert list(drawn["phase's 4 steps"].x) == [24, 48]
    across = {label: list(line.y) for label, line in drawn.items() if list(line.x) == [0, 96]}
    assert across == {
        "teacher, 4 steps": [1, 1],
        "teacher, 1 step": [9, 9],
        "best other run": [3, 3],
    }


def test_a_runs_lines_have_the_colour_of_its_method(tmp_path):
    btd = Distillation(step_schedule=(16, 8, 4), method="BTD", train_images=16, batch_size=4)
    task = task_in(tmp_path, btd, metric_every=2)
    task.train()
    *own, distance = view.RunView(task.folder)._charts
    lines = [chart.drawn["BTD"] for chart in own] + [distance.drawn["4 steps"]]
    assert {line.color for line in lines} == {METHOD_STYLES["BTD"].color}


def test_pictures_are_drawn_every_few_seconds_whatever_drawing_costs(task, monkeypatch):
    task.train()
    clock, drawn = [100.0], []
    monkeypatch.setattr(view.time, "monotonic", lambda: clock[0])
    shown = view.RunView(task.folder)

    def draw():
        clock[0] += 0.9  # as on a busy machine
        shown._charts = ["drawn"]
        drawn.append(clock[0])

    monkeypatch.setattr(shown, "_draw", draw)
    for step in range(100):
        clock[0] += 0.5
        monkeypatch.setattr(view, "read_status", lambda folder, step=step: Status("running", step))
        shown.refresh()
    gaps = np.diff(drawn)
    assert gaps.max() < 5


def test_a_cell_that_is_executed_again_leaves_no_widgets(task, person):
    train([task])
    before = len(ipywidgets.widgets.widget._instances)
    for _ in range(3):
        train([task])
    assert len(ipywidgets.widgets.widget._instances) == before


def test_widgets_are_refreshed_until_they_are_closed_and_a_picture_while_ended():
    class Box(live.LiveBox):
        SECONDS = 0.01

        def tick(self):
            calls.append(1)
            self.ended = 3 <= len(calls) < 6

        def picture(self):
            return b"PNG"

        def say(self, message, kind):
            said.append(message)

        def update(self, shown, raw):
            displayed.append(sorted(shown))

    calls, displayed, said, box = [], [], [], Box("key", [])
    thread = threading.Thread(target=box._live, args=[box, False])
    thread.start()
    while len(calls) < 7:
        time.sleep(0.01)
    box.close()
    thread.join(10)
    assert not thread.is_alive()
    picture = ["image/png", "text/plain"]
    assert displayed == [picture, [WIDGET_VIEW, *picture]]
    assert said == ["Run this cell again to keep a picture of this in the notebook.", ""]


def test_a_chart_draws_means_of_many_points_in_a_range_that_holds_them():
    n = list(range(1, 241))
    lines = {"a": Line("#123456", n, n), "flat": Line("#654321", [0, 300], [2.0, 2.0], True)}
    chart = Chart("loss", "images", 300, "{:,.0f}".format, lines, [150])
    assert len(chart.drawn["a"].x) == 120
    assert (chart.drawn["a"].x[0], chart.drawn["a"].y[-1]) == (1.5, 239.5)
    low, high = chart.span
    assert 10**low < 1.5 and 10**high > 239 and (2 * low) % 1 == (2 * high) % 1 == 0
    shown = svg(chart)
    assert "<title>a: 239.5 at 240</title>" in shown
    assert 'aria-label="loss by images of a, flat"' in shown
    assert len(figure([chart, chart]).axes) == 2


def test_a_chart_of_nothing_or_of_numbers_without_a_logarithm_is_empty():
    for y in ([], [0.0, math.nan]):
        chart = Chart("loss", "images", 3, str, {"a": Line("#123456", range(len(y)), y)})
        assert chart.drawn == {}
