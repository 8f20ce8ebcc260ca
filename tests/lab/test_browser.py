"""The run browser: what it lists, groups, compares and samples, and what its buttons do."""

import contextlib
import io
import json
import os
import re
import shutil
import threading
import time
from dataclasses import replace

import psutil
import pytest
import torch
from helpers import end_job, task_in, wait, weights
from PIL import Image

from tract.experiments.catalogue import (
    differences,
    find_runs,
    labels_of,
    samples_at,
)
from tract.experiments.experiment import Experiment, run_name
from tract.experiments.history import history
from tract.experiments.job import JOB, launch
from tract.experiments.measure import measure, measure_phases, saved_samples
from tract.experiments.results import append_results, read_results
from tract.experiments.run import Checkpointing
from tract.experiments.status import STOP, Status, process_of, write_status
from tract.lab.browser import PAGES, RunBrowser, browse
from tract.networks.weights import load_model, save_model
from tract.samplers import sample
from tract.settings import Distillation, Training

STUDENT = Distillation(train_images=16, batch_size=4, step_schedule=(8, 2, 1))
OTHER = Distillation(train_images=16, batch_size=4, step_schedule=(8, 2, 1), seed=1)
NAME = f"quick/{run_name(STUDENT)}"[:-1]  # without the seed


def stop(denoiser):
    raise KeyError("power cut")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A teacher, a finished student, one that was cut off after 3 of 4 steps, and a damaged one."""
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 4}
    begun = Experiment(tmp_path_factory.mktemp("runs") / "quick", "digits", **options)
    training = Training(train_images=8, batch_size=4)
    measure(begun, begun.train_teacher("digits", training), training, [8, 1])
    measure(begun, begun.distill(STUDENT), STUDENT, [1])
    measure_phases(begun, STUDENT, 4)
    with contextlib.suppress(KeyError):
        begun.distill(OTHER, Checkpointing(steps=1, metric=stop, metric_every=3))
    (begun.folder / "odd").mkdir()
    (begun.folder / "odd" / "card.json").write_text('{"method": ')
    return begun


@pytest.fixture
def root(experiment, tmp_path):
    """A copy of those runs that a test may change."""
    shutil.copytree(experiment.folder, tmp_path / "runs" / "quick")
    return tmp_path / "runs"


def found(root):
    return {run.name: run for run in find_runs(root)}


def test_all_runs_are_found_with_what_they_are(root):
    runs = found(root)
    assert {
        name: (run.state, run.status.step, run.status.num_steps) for name, run in runs.items()
    } == {
        f"{NAME}0": ("finished", 4, 4),
        f"{NAME}1": ("failed", 3, 4),
        "quick/odd": ("damaged", 0, 0),
        "quick/teacher": ("finished", 2, 2),
    }
    assert "odd/card.json is damaged" in runs["quick/odd"].reason
    assert [run.name for run in find_runs(root / "quick" / "teacher")] == ["teacher"]
    with pytest.raises(FileNotFoundError, match="no folder .*nothing: begin a run there"):
        find_runs(root / "nothing")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "is damaged"),
        ("{}", "does not say for which levels it was trained"),
        ('{"method": "TRACT"}', "does not say for which levels it was trained"),
    ],
)
def test_a_card_that_is_none_makes_a_run_damaged(root, text, reason):
    (root / "quick" / "odd" / "card.json").write_text(text)
    assert reason in found(root)["quick/odd"].reason


def test_a_history_that_is_being_written_is_read_up_to_its_last_whole_line(root):
    path = root / "quick" / "teacher" / "history.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "num_st')
    assert list(history(path.parent)["step"]) == [1, 2]
    path.write_text(path.read_text() + "\n")
    browser = RunBrowser(root)
    select(browser, "quick/teacher")
    assert "history.jsonl is damaged" in browser.message.value


def test_runs_are_called_by_what_tells_them_apart(root):
    runs = found(root)
    del runs["quick/odd"]
    assert labels_of(list(runs.values())) == {
        f"{NAME}0": "TRACT 8>2>1, seed 0",
        f"{NAME}1": "TRACT 8>2>1, seed 1",
        "quick/teacher": "teacher",
    }
    shutil.copytree(root / "quick", root / "again")
    teachers = [run for run in find_runs(root) if run.method == "teacher"]
    labels = labels_of(teachers)
    assert labels["again/teacher"] == "teacher, again/teacher"


def test_parameters_are_compared_by_their_dotted_names():
    cards = {"a": {"settings": {"seed": 0, "batch": 4}, "x": [1]}, "b": {"settings": {"seed": 1}}}
    assert differences(cards).T.to_dict() == {
        "settings.seed": {"a": "0", "b": "1"},
        "settings.batch": {"a": "4", "b": ""},
        "x": {"a": "[1]", "b": ""},
    }
    cards["b"] = cards["a"]
    assert len(differences(cards)) == 0
    assert len(differences(cards, only=False)) == 3


def test_samples_are_those_measured_or_made_from_the_same_noise(experiment):
    runs = found(experiment.folder.parent)
    student = runs[f"{NAME}0"]
    saved = saved_samples(experiment, student.folder.name)
    assert torch.equal(samples_at(student, 1, 3), saved[1][:3])
    model, noise = load_model(student.folder)[0], experiment.noise[0]
    for nfe, count in [(4, 3), (1, 6)]:  # not measured at all, and not so many
        made = samples_at(student, nfe, count)
        grid = experiment.grid(STUDENT)
        expected = sample(lambda *a: model(*a).clamp(-1, 1), noise[:3], grid, nfe)
        torch.testing.assert_close(made[:3], expected, rtol=0, atol=1 / 127)  # to pixels
        assert len(made) == count


def test_samples_of_an_unfinished_run_are_of_its_newest_checkpoint(experiment, root):
    run = found(root)[f"{NAME}1"]
    first = samples_at(run, 1, 2)
    newest = max(run.folder.glob("checkpoint-*.safetensors"))
    model = load_model(newest, role="ema")[0]
    expected = sample(lambda *a: model(*a).clamp(-1, 1), experiment.noise[0][:2], *_one(experiment))
    torch.testing.assert_close(first, expected, rtol=0, atol=1 / 127)  # to pixels
    for path in run.folder.glob("checkpoint-*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no weights yet"):
        samples_at(run, 1, 2)


def _one(experiment):
    return experiment.grid(STUDENT), 1


def test_samples_that_were_made_are_remembered_until_the_weights_change(root, monkeypatch):
    run = found(root)["quick/teacher"]
    (run.folder / "samples.safetensors").unlink()  # which are of the weights that it has
    first = samples_at(run, 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr("tract.metrics.sources.open_run", None)  # would fail if it were called
        assert torch.equal(samples_at(run, 2, 2), first)
    model, card = load_model(run.folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    save_model(run.folder / "model.safetensors", model, card)
    assert not torch.equal(samples_at(run, 2, 2), first)


def rows(browser):
    return re.findall(r'type="checkbox" value="([^"]*)"', browser.table.rows.value)


def open_page(browser, name):
    browser.pages.selected_index = PAGES.index(name)


def select(browser, *names):
    """Tick rows, as lab.js says it."""
    browser.table.clicks.value = json.dumps({"sort": "", "rows": names, "time": time.time()})


def sort(browser, name):
    browser.table.clicks.value = json.dumps({"sort": name, "rows": [], "time": time.time()})


def test_the_table_is_filtered_by_words_and_sorted_by_its_heads(root):
    browser = RunBrowser(root)
    assert rows(browser)[0] != "quick/teacher"  # the newest training is first
    sort(browser, "images")
    assert rows(browser)[0] == "quick/teacher"
    assert rows(browser)[-1] == "quick/odd"  # nothing is known of it
    sort(browser, "images")
    assert rows(browser)[-2:] == ["quick/teacher", "quick/odd"]
    assert "images ▼" in browser.table.rows.value
    sort(browser, "fd_pixels")
    found = browser.overview.set_index("run")["fd_pixels"].dropna()
    assert rows(browser)[: len(found)] == list(found.sort_values().index)
    browser.search.value = "tract FINISHED"
    assert rows(browser) == [f"{NAME}0"]
    browser.search.value = "failed"
    assert rows(browser) == [f"{NAME}1"]
    assert browser.count.value == "1 of 4 runs"
    assert any("75%" in line for line in browser.table.lines())


def test_measuring_again_does_not_change_the_order(root):
    before = [(run.name, run.trained) for run in find_runs(root)]
    for path in root.rglob("samples.safetensors"):
        path.touch()
    assert [(run.name, run.trained) for run in find_runs(root)] == before


def test_seeds_are_grouped_as_mean_and_deviation(root):
    table = read_results(root / "quick" / "results.csv")
    row = table[(table["run"] == f"{NAME[6:]}0") & (table["metric"] == "fd_pixels")].iloc[0]
    other = row.to_dict() | {"run": f"{NAME[6:]}1", "value": row["value"] + 2}
    append_results(root / "quick" / "results.csv", [other])
    browser = RunBrowser(root)
    browser.group.value = True
    assert "TRACT 8&gt;2&gt;1, 2 seeds" in browser.table.rows.value
    select(browser, f"{NAME}0\n{NAME}1")
    assert browser.table.selected == [f"{NAME}0", f"{NAME}1"]
    assert f"{row['value'] + 1:.4g} \u00b1 1" in "".join(browser.table.lines())


def test_selected_runs_stay_selected_with_their_colours(root):
    browser = RunBrowser(root)
    select(browser, f"{NAME}1", "quick/teacher")
    colors = [browser.table.color(name) for name in browser.table.selected]
    assert len(set(colors)) == 2
    sort(browser, "state")
    assert set(browser.table.selected) == {f"{NAME}1", "quick/teacher"}
    shutil.rmtree(root / "quick" / "teacher")
    browser.read()
    assert browser.table.selected == [f"{NAME}1"]
    assert browser.table.color(f"{NAME}1") in colors


def test_every_view_shows_the_selected_runs(root):
    browser = RunBrowser(root)
    select(browser, f"{NAME}0", f"{NAME}1")
    assert browser.curves.value.count("<svg") == 2
    assert "at 16</title>" in browser.curves.value
    browser.x.value = "time"
    assert " s</title>" in browser.curves.value
    open_page(browser, "Samples")
    assert browser.samples.nfe.options == (1, 2, 4, 8)
    browser.samples.thread.join()
    one_step = browser.samples.images.value
    assert "TRACT 8&gt;2&gt;1, seed 0, 1 step" in one_step
    browser.samples.nfe.value = 2
    browser.samples.thread.join()
    assert "seed 0, 2 steps" in browser.samples.images.value
    open_page(browser, "Parameters")
    assert "settings.seed" in browser.parameters.value
    assert "settings.batch_size" not in browser.parameters.value
    browser.only.value = False
    assert "settings.batch_size" in browser.parameters.value
    open_page(browser, "Results")
    assert "rmse_to_rollout" in browser.results.value
    open_page(browser, "Watch")
    assert "failed, step 3 of 4" in "".join(
        p.views.children[0]._state.value for p in browser.watched.children
    )
    assert Image.open(io.BytesIO(browser.picture())).height > 100


def test_sampling_is_cancelled_at_its_next_step(root, monkeypatch):
    def slow(run, nfe, count, progress):
        begun.set()
        while True:
            progress(0.5)

    begun = threading.Event()
    monkeypatch.setattr("tract.lab.sampler.samples_at", slow)
    browser = RunBrowser(root)
    open_page(browser, "Samples")
    begun.wait()
    assert not browser.samples.cancel.disabled
    browser.samples.cancel.click()
    browser.samples.thread.join(10)
    assert not browser.samples.thread.is_alive()
    assert "sampling was cancelled" in browser.message.value


def test_a_run_is_stopped_resumed_and_opened_in_the_editor(root, monkeypatch):
    opened, launched = [], []

    class Editor:
        def edit(self, settings):
            opened.append(settings["seed"])

    monkeypatch.setattr("tract.lab.browser.launch", launched.append)
    folder = root / "quick" / f"{NAME[6:]}1"
    browser = RunBrowser(root, Editor())
    select(browser, f"{NAME}1")
    assert browser.buttons["Stop"].disabled
    assert browser.buttons["Resume"].disabled  # nobody left a task there
    (folder / JOB).write_text("{}")
    browser.read()
    browser.buttons["Resume"].click()
    assert launched == [[folder]]
    browser.buttons["Open in editor"].click()
    assert opened == [1]
    write_status(folder, Status("running", step=3, **process_of(os.getpid())))
    browser.read()
    assert any("running" in line for line in browser.table.lines())
    browser.buttons["Stop"].click()
    assert (folder / STOP).read_text() == str(os.getpid())


@pytest.mark.slow
def test_a_killed_job_is_seen_within_five_seconds_and_resumed_to_the_same_end(
    tmp_path, monkeypatch, request
):
    settings = Distillation(step_schedule=(16, 4, 1), train_images=400, batch_size=4)
    task, here = (task_in(tmp_path / name, settings) for name in ("job", "here"))
    monkeypatch.setattr("tract.lab.live.somebody_clicks", lambda: True)
    browser = RunBrowser(task.experiment.folder)
    open_page(browser, "Watch")
    browser.show()  # from here on its own timer looks

    def see(word, seconds):
        until = time.monotonic() + seconds
        said = []
        while len(said) < 2 or not all(word in text for text in said):
            assert time.monotonic() < until, said
            time.sleep(0.05)
            panels = [panel.views.children[0]._state.value for panel in browser.watched.children]
            said = [browser.table.rows.value, *panels]
        return said[1]

    replace(task, minutes=0.001).write()  # between checkpoints
    launch([task.folder])
    request.addfinalizer(lambda: end_job(task.folder))
    job = psutil.Process(wait(task.folder, lambda status: status.step > 5).pid)
    job.suspend()  # or it might have finished before
    see("running", 60)
    job.kill()
    assert f"process {job.pid} ended unexpectedly" in (said := see("failed", 5))
    assert "Resume continues from its last checkpoint" in said
    browser.buttons["Resume"].click()
    assert wait(task.folder, lambda status: not status.active).state == "finished"
    browser.close()
    assert torch.equal(weights(here.train()), weights(load_model(task.folder)[0]))


def test_a_damaged_run_is_shown_with_its_reason_beside_whole_ones(root):
    (root / "quick" / f"{NAME[6:]}0" / "model.safetensors").write_bytes(b"no weights")
    browser = RunBrowser(root)
    select(browser, "quick/odd", f"{NAME}0", "quick/teacher")
    assert "odd/card.json is damaged" in browser.message.value
    open_page(browser, "Samples")
    browser.samples.nfe.value = 2
    browser.samples.thread.join()
    assert "model.safetensors is damaged" in browser.message.value
    assert "teacher" in browser.samples.images.value
    (root / "quick" / "results.csv").write_text("")
    browser.read()
    open_page(browser, "Results")
    assert "results.csv is damaged" in browser.message.value


def test_a_name_is_no_html(root):
    (root / "<b>bold").mkdir()
    (root / "<b>bold" / "card.json").write_text("")
    browser = RunBrowser(root)
    select(browser, "<b>bold")
    assert "&lt;b&gt;bold" in browser.message.value
    assert "<b>bold" not in browser.message.value


def test_a_folder_without_runs_is_an_empty_table(tmp_path):
    browser = RunBrowser(tmp_path)
    assert rows(browser) == []
    for page in PAGES:
        open_page(browser, page)
    assert Image.open(io.BytesIO(browser.picture())).height > 10


def test_a_folder_is_found_from_the_notebooks_own(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    browse("runs")
    with pytest.raises(FileNotFoundError, match="no folder nothing"):
        browse("nothing")
