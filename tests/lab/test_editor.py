"""The editor says what its widgets say, why not, and the same as papermill's parameters."""

import asyncio
from pathlib import Path

import pytest
import yaml
from tiny import teacher

from tract.ema import decay_from_residual
from tract.experiments.experiment import Experiment
from tract.jobs.cost import Estimate
from tract.jobs.parameters import check_parameters, declared_parameters, parameters_of, presets_in
from tract.jobs.plan import duration, phase_plan, split
from tract.lab import editor as editor_file
from tract.lab.editor import Editor
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
    editor.fields["batch"].value = 64
    editor.preset.value = "this notebook, 64>1"
    assert editor.settings == RECIPES[1]
    assert editor.reason == ""
    assert not editor.start.disabled


def test_the_picture_and_the_numbers_follow_a_change(editor):
    picture, numbers = bytes(editor.picture.value), editor.numbers.value
    assert picture.startswith(b"\x89PNG")
    editor.schedule.value = "[64, 16, 1]"
    assert editor.settings.step_schedule == (64, 16, 1)
    assert bytes(editor.picture.value) != picture
    assert "64&gt;16" in editor.numbers.value
    assert "64&gt;16" not in numbers


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("schedule", "[64, 7, 1]", "7 does not divide 64"),
        ("schedule", "[64, 8", "is no YAML"),
        ("schedule", "64", "use a list of steps"),
        ("schedule", "[64, 8z, 1]", "8z"),
        ("schedule", "[64; 8; 1]", "64; 8; 1"),
        ("method", "BTD", "BTD halves the steps in every phase"),
        ("noise_schedule", "karras", "knows 'cosine' levels"),
        ("solver", "heun", "use karras or ddpm_linear levels"),
        ("images", 10, "train_images is 10, less than one batch"),
        ("self_ema", 1.0, "self_ema is 1.0: use 0 or more and less than 1"),
        ("seed", -1, "seed is -1"),
    ],
)
def test_what_is_impossible_is_red_with_its_reason_and_cannot_be_started(
    editor, name, value, reason
):
    widget = editor.schedule if name == "schedule" else editor.fields[name]
    before = widget.value
    widget.value = value
    assert reason in editor.reason
    assert editor.start.disabled
    assert editor_file.RED in editor.status.value
    widget.value = before
    assert editor.settings == RECIPES[0]
    assert not editor.start.disabled
    assert editor_file.GREEN in editor.status.value


def test_phases_are_added_edited_and_removed_by_their_fields(editor):
    editor.add.click()
    assert editor.settings.step_schedule == (64, 16, 8, 1)
    grid, first, *_ = editor.entries.children
    first.children[1].value = "32"
    assert editor.settings.step_schedule == (64, 32, 8, 1)
    _, remove = first.children[1:]
    remove.click()
    assert editor.settings.step_schedule == (64, 8, 1)
    assert len(editor.entries.children) == 3
    grid.children[1].value = "[16, 32, 64]"
    assert editor.settings.step_schedule == ((16, 32, 64), 8, 1)
    assert yaml.safe_load(editor.yaml.value)["step_schedules"] == [[[16, 32, 64], 8, 1]]
    assert "16&lt;32&lt;64&gt;8" in editor.numbers.value


def test_halving_leads_to_btd(editor):
    editor.fields["method"].value = "BTD"
    editor.halve.click()
    assert editor.settings.step_schedule == (64, 32, 16, 8, 4, 2, 1)
    assert editor.reason == ""
    editor.schedule.value = "[40, 1]"
    assert editor.yaml.value.startswith("# impossible: BTD halves")
    editor.halve.click()
    assert "halving 40 leads to 5" in editor.status.value


def test_yaml_is_what_papermill_takes_and_the_editor_loads(editor):
    editor.schedule.value = "[64, 4, 1]"
    editor.fields["self_ema"].value = 0.25
    parameters = yaml.safe_load(editor.yaml.value)
    del parameters["clip_norm"]  # no parameter of that notebook, and kept all the same
    check_parameters(declared_parameters(NOTEBOOKS / "03_tract.ipynb"), parameters)
    changed = editor.settings
    editor.preset.value = "this notebook, 64>1"
    editor.load(parameters)
    assert editor.settings == changed


def test_presets_for_other_teachers_are_shown_and_refused(editor):
    names = [name for name in editor.preset.options if name.startswith("cifar10_edm, ")]
    assert names == ["cifar10_edm, 40>1", "cifar10_edm, 40>2"]
    editor.preset.value = names[0]
    assert editor.settings.step_schedule == (40, 1)
    assert editor.settings.clip_norm == 1e9
    assert "knows 'cosine' levels" in editor.reason
    assert yaml.safe_load(editor.yaml.value)["noise_schedule"] == "karras"
    editor.preset.value = "this notebook, 64>8>1"
    assert editor.settings == RECIPES[0]


def test_every_preset_with_a_schedule_can_be_loaded(editor, monkeypatch):
    monkeypatch.setattr(Editor, "_draw", lambda editor: None)
    presets = presets_in(NOTEBOOKS / "presets")
    assert len(presets) > 10
    for parameters in presets.values():
        editor.load(parameters)
        assert parameters_of(editor.settings)["step_schedules"] == parameters["step_schedules"]


def test_time_is_told_once_it_was_measured(editor, monkeypatch):
    found = Estimate("TRACT", 1280, 10, flop=10**9, seconds=0.5, memory=0, tried=64)
    monkeypatch.setattr(editor_file, "estimate", lambda *settings: found)
    assert " s</td>" not in editor.numbers.value
    editor.measure.click()
    assert " s</td>" in editor.numbers.value
    editor.fields["batch"].value = 64  # of which nothing is known
    assert " s</td>" not in editor.numbers.value


def test_where_nobody_can_click_it_starts_at_once(editor):
    assert asyncio.run(editor.started()) == RECIPES[0]
    editor.fields["batch"].value = 10**6
    with pytest.raises(ValueError, match="train_images is 1280, less than one batch"):
        asyncio.run(editor.started())


def test_where_somebody_can_it_starts_with_a_click(editor, monkeypatch):
    async def somebody():
        return True

    monkeypatch.setattr(editor_file, "clicks_arrive", somebody)

    async def edited():
        waiting = asyncio.ensure_future(editor.started())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        editor.fields["seed"].value = 7
        editor.start.click()
        return await waiting

    assert asyncio.run(edited()).seed == 7


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
