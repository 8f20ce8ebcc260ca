"""The editor says what its widgets say, why not, and the same as papermill's parameters."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from tiny import teacher

from tract.ema import decay_from_residual
from tract.experiments.experiment import Experiment, run_name
from tract.experiments.job import Task
from tract.experiments.status import Status, process_of, write_status
from tract.jobs.parameters import check_parameters, declared_parameters, parameters_of, presets_in
from tract.jobs.plan import duration, phase_plan, split
from tract.lab import plan_view
from tract.lab.editor import Editor
from tract.lab.fields import schedule_of
from tract.lab.plan_view import PlanView
from tract.networks.weights import save_model
from tract.phases import parse_schedule
from tract.settings import Distillation

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
RECIPES = [
    Distillation(step_schedule=schedule, train_images=1280, clip_norm=2.0)
    for schedule in ([64, 8, 1], [64, 1])
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    made = Experiment(tmp_path_factory.mktemp("run"), "digits", teacher_steps=64, reference_steps=8)
    (made.folder / "teacher").mkdir()
    save_model(made.folder / "teacher" / "model.safetensors", teacher(), {"method": "teacher"})
    return made


@pytest.fixture
def editor(experiment):
    return Editor(experiment, RECIPES, NOTEBOOKS / "presets")


def test_it_begins_with_the_first_recipe_and_goes_back_to_others(editor):
    assert editor.settings == RECIPES[0]
    editor.fields["batch_size"].value = "64"
    editor.preset.value = "this notebook, 64>1"
    assert editor.settings == RECIPES[1]
    assert editor.reason == ""
    assert not editor.start.disabled


def test_the_picture_and_the_numbers_follow_a_change(editor):
    picture, numbers = editor.view.png, editor.view.numbers.value
    assert picture.startswith(b"\x89PNG")
    editor.schedule.value = "64>16>1"
    assert editor.settings.step_schedule == (64, 16, 1)
    assert editor.view.png != picture
    assert "64&gt;16" in editor.view.numbers.value
    assert "64&gt;16" not in numbers
    assert 'alt="Groups and hops of the phases 64&gt;16&gt;1"' in editor.view.picture.value


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("1024>32>1", [1024, 32, 1]),
        ("1024,32,1", [1024, 32, 1]),
        (" 1024 > 32 > 1 ", [1024, 32, 1]),
        ("[1024, 32, 1]", [1024, 32, 1]),
        ("4<8<16>1", [[4, 8, 16], 1]),
        ("[[4, 8, 16], 1]", [[4, 8, 16], 1]),
    ],
)
def test_a_schedule_is_read_in_every_form_that_is_printed(text, schedule):
    assert schedule_of(text) == schedule


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("schedule", "[64, 7, 1]", "7 does not divide 64"),
        ("schedule", "[64, 8", "is not YAML"),
        ("schedule", "64", "give two entries or more"),
        ("schedule", "sixty-four", "use steps such as 1024>32>1"),
        ("schedule", "[64, 8z, 1]", "8z"),
        ("schedule", "[64; 8; 1]", "64; 8; 1"),
        ("schedule", "64>64", "choose student_network or student_prediction"),
        ("schedule", "64>8>1>1", "choose student_network or student_prediction"),
        ("method", "BTD", "BTD halves the steps in every phase"),
        ("noise_schedule", "karras", "was trained on 'cosine'"),
        ("solver", "heun", "use karras or ddpm_linear levels"),
        ("train_images", "10", "train_images is 10, less than one batch"),
        ("train_images", "1e3.5", "use a number, such as 0.001 or 2e4"),
        ("train_images", "1280.5", "use a whole number"),
        ("batch_size", "100000", "less than one batch"),
        ("learning_rate", "0,001", "use a number, such as 0.001 or 2e4"),
        ("self_ema", "1", "self_ema is 1.0: use 0 or more and less than 1"),
        ("seed", "-1", "seed is -1"),
    ],
)
def test_what_is_impossible_is_said_with_its_reason_and_cannot_be_started(
    editor, name, value, reason
):
    widget = editor.schedule if name == "schedule" else editor.fields[name]
    before = widget.value
    widget.value = value
    assert reason in editor.reason
    assert editor.start.disabled
    assert "tract-bad" in editor.status.value
    widget.value = before
    assert editor.settings == RECIPES[0]
    assert not editor.start.disabled
    assert "tract-good" in editor.status.value


def test_where_steps_stay_equal_the_student_that_it_needs_is_offered(editor):
    assert editor.fields["student_prediction"].layout.display == "none"
    editor.schedule.value = "64>64>1"
    assert editor.fields["student_prediction"].layout.display == ""
    editor.fields["student_prediction"].value = "v"
    assert editor.reason == ""


def test_what_is_perhaps_not_meant_is_warned_of(editor):
    editor.fields["train_images"].value = "2e4"
    assert editor.settings.train_images == 20_000
    assert "Warning" not in editor.status.value
    editor.fields["learning_rate"].value = "1"
    assert "Warning: learning_rate is 1e+03 times the recipe" in editor.status.value
    editor.fields["train_images"].value = "1e12"
    assert "days of compute" in editor.status.value
    editor.preset.value = "fashion_mnist_tract, 1024>1"
    assert "the preset is for fashion_mnist, these data are digits" in editor.status.value
    editor.preset.value = "this notebook, 64>1"
    assert "only 10 steps in each phase" in editor.status.value


def test_boundaries_are_dragged_added_removed_and_taken_back(editor):
    fields = editor.boundaries
    fields.add.click()
    assert editor.settings.step_schedule == (64, 16, 8, 1)
    first = fields.entries.children[0].children[0]
    assert first.options == (32, 16)
    first.value = 32
    assert editor.settings.step_schedule == (64, 32, 8, 1)
    fields.entries.children[0].children[1].click()
    assert editor.settings.step_schedule == (64, 8, 1)
    for _ in range(2):
        fields.entries.children[0].children[1].click()
    assert editor.schedule.value == "[64]"
    fields.add.click()
    assert editor.settings.step_schedule == (64, 1)
    editor.undo.click()
    assert editor.schedule.value == "[64]"
    editor.undo.click()
    assert editor.settings.step_schedule == (64, 1)
    fields.text.value = "16<32<64>8>1"
    assert yaml.safe_load(editor.parameters)["step_schedules"] == [[[16, 32, 64], 8, 1]]


def test_halving_leads_to_btd_and_says_which_phases_are_not_drawn(editor):
    editor.fields["method"].value = "BTD"
    editor.boundaries.halve.click()
    assert editor.settings.step_schedule == (64, 32, 16, 8, 4, 2, 1)
    assert editor.reason == ""
    assert "2 of 6 phases, in the middle, are omitted" in editor.view.picture.value
    editor.schedule.value = "[40, 1]"
    assert "# impossible: BTD halves" in editor.yaml.value
    editor.boundaries.halve.click()
    assert "halving 40 leads to 5" in editor.status.value


def test_yaml_is_what_papermill_takes_and_the_editor_loads(editor):
    editor.schedule.value = "[64, 4, 1]"
    editor.fields["self_ema"].value = "0.25"
    parameters = yaml.safe_load(editor.parameters)
    assert "[64, 4, 1]" in editor.yaml.value
    del parameters["clip_norm"]  # no parameter of that notebook, and kept all the same
    check_parameters(declared_parameters(NOTEBOOKS / "03_tract.ipynb"), parameters)
    changed = editor.settings
    editor.preset.value = "this notebook, 64>1"
    editor.load(parameters)
    assert editor.settings == changed
    editor.preset.value = "this notebook, 64>8>1"
    editor.edit(json.loads(json.dumps(asdict(changed))))
    assert editor.settings == changed


def test_presets_for_other_teachers_are_shown_and_refused(editor):
    names = [name for name in editor.preset.options if name.startswith("cifar10_edm, ")]
    assert names == ["cifar10_edm, 40>1", "cifar10_edm, 40>2"]
    editor.preset.value = names[0]
    assert editor.settings.step_schedule == (40, 1)
    assert editor.settings.clip_norm == 1e9
    assert "was trained on 'cosine'" in editor.reason
    assert yaml.safe_load(editor.parameters)["noise_schedule"] == "karras"
    editor.preset.value = "this notebook, 64>8>1"
    assert editor.settings == RECIPES[0]


def test_every_preset_with_a_schedule_can_be_loaded(editor, monkeypatch):
    monkeypatch.setattr(PlanView, "draw", lambda *given: None)
    presets = presets_in(NOTEBOOKS / "presets")
    assert len(presets) > 10
    for parameters in presets.values():
        editor.load(parameters)
        assert parameters_of(editor.settings)["step_schedules"] == parameters["step_schedules"]


def test_time_is_told_once_it_was_measured_also_of_a_sweep(editor, monkeypatch):
    found = {"flop": 1e9, "seconds": 0.5}
    monkeypatch.setattr(plan_view, "estimate", lambda *settings: found)
    view = editor.view
    assert " s</td>" not in view.numbers.value
    view.other.value = "this notebook, 64>1"
    view.seeds.value = "0, 1, 2"
    assert view.numbers.value.count("<table") == 2
    assert "3 seeds of 2 schedules" in view.sweep.value
    assert "time unknown: press Measure time" in view.sweep.value
    view.measure.click()
    assert " s</td>" in view.numbers.value
    assert "time unknown" not in view.sweep.value
    view.other.value = "nothing"
    editor.fields["batch_size"].value = "64"  # of which nothing is known
    assert " s</td>" not in view.numbers.value
    view.seeds.value = "one"
    assert "use whole numbers, such as 0, 1, 2" in view.sweep.value


def test_it_says_which_run_the_settings_are_and_start_does_what_is_left(editor, experiment):
    assert editor.summary.value.endswith("a new run</span>")
    clicked = []
    editor.on_start(lambda: clicked.append(editor.task(Task(experiment, RECIPES[1])).settings))
    editor.start.click()
    assert clicked == [RECIPES[0]]
    folder = experiment.folder / run_name(RECIPES[0])
    folder.mkdir()
    try:
        write_status(folder, Status("stopped", step=4, num_steps=10))
        editor.tick()
        assert "stopped, step 4 of 10" in editor.summary.value
        assert (editor.start.description, editor.start.disabled) == ("Resume", False)
        write_status(folder, Status("running", step=5, num_steps=10, **process_of(os.getpid())))
        editor.tick()
        assert (editor.start.description, editor.start.disabled) == ("Running", True)
        (folder / "model.safetensors").touch()
        editor.tick()
        assert "finished" in editor.summary.value
        assert "Change a setting, such as seed, for another run" in editor.summary.value
        assert (editor.start.description, editor.start.disabled) == ("Finished", True)
    finally:
        shutil.rmtree(folder)


def test_a_plan_counts_what_each_phase_does():
    settings = Distillation(step_schedule=[64, 8, 1], train_images=1280, batch_size=10)
    config = teacher().config
    table = phase_plan(config, settings, flop_rate=1e6).set_index("phase")
    assert list(table.index) == ["64>8", "8>1", "all"]
    assert list(table["images"]) == [640, 640, 1280]
    assert list(table["steps"]) == [64, 64, 128]
    assert table.loc["8>1", "mu_I"] == decay_from_residual(settings.ema_residual, 64)
    # For each image: the teacher, the self-teacher, and the student, of which also backward.
    assert list(table["evaluations"]) == [3 * 640, 3 * 640, 3 * 1280]
    assert table.loc["all", "GFLOP"] == pytest.approx(table["GFLOP"].iloc[:2].sum())
    assert table.loc["all", "time"] == duration(table.loc["all", "GFLOP"] * 1e9 / 1e6)


@pytest.mark.parametrize(
    ("schedule", "found"),
    [([1024, 1], (0, 32)), ([1024, 32, 1], (0, 128)), ([64, 32, 1], (1, 4)), ([2, 1], None)],
)
def test_the_longest_groups_are_split_evenly(schedule, found):
    assert split(parse_schedule(schedule)) == found


def test_a_duration_has_the_unit_that_suits_it():
    times = {8: "8 s", 90: "1.5 min", 3000: "50 min", 5000: "1.4 h", 10**6: "12 days"}
    assert {seconds: duration(seconds) for seconds in times} == times
