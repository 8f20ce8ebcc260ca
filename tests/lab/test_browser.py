"""The run browser: what it lists, compares, samples and deletes, and what it refuses to delete."""

import contextlib
import io
import shutil

import pytest
import torch
from PIL import Image

from tract.base.files import only_writer
from tract.experiments.catalogue import (
    delete_run,
    differences,
    find_runs,
    labels_of,
    results_of,
    samples_at,
)
from tract.experiments.experiment import Experiment
from tract.experiments.history import history
from tract.experiments.measure import measure, measure_phases, saved_samples
from tract.experiments.run import Checkpointing
from tract.lab.browser import RunBrowser
from tract.networks.weights import load_model
from tract.samplers import sample
from tract.settings import Distillation, Training

STUDENT = Distillation(train_images=16, batch_size=4, step_schedule=(8, 2, 1))
OTHER = Distillation(train_images=16, batch_size=4, step_schedule=(8, 2, 1), seed=1)
NAME = "quick/TRACT-8-2-1-16images-batch4-seed"


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
    assert {name: (run.state, run.step, run.num_steps) for name, run in runs.items()} == {
        f"{NAME}0": ("finished", 4, 4),
        f"{NAME}1": ("unfinished", 3, 4),
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
        ("{}", "has no method: restore it"),
        ('{"method": "TRACT"}', "has no experiment: restore it"),
    ],
)
def test_a_card_that_is_none_makes_a_run_damaged(root, text, reason):
    (root / "quick" / "odd" / "card.json").write_text(text)
    assert reason in found(root)["quick/odd"].reason


def test_a_history_that_is_being_written_is_read_up_to_its_last_whole_line(root):
    path = root / "quick" / "teacher" / "history.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "num_st')
    assert found(root)["quick/teacher"].step == 2
    assert list(history(path.parent)["step"]) == [1, 2]
    path.write_text(path.read_text() + "\n")
    assert "history.jsonl is damaged" in found(root)["quick/teacher"].reason


def test_runs_are_called_by_what_tells_them_apart(root):
    runs = found(root)
    del runs["quick/odd"]
    assert labels_of(list(runs.values())) == {
        f"{NAME}0": "TRACT 8>2>1\nseed 0",
        f"{NAME}1": "TRACT 8>2>1\nseed 1",
        "quick/teacher": "teacher",
    }
    shutil.copytree(root / "quick", root / "again")
    teachers = [run for run in find_runs(root) if run.method == "teacher"]
    labels = labels_of(teachers)
    assert labels["again/teacher"] == "teacher\nagain/teacher"


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
    with pytest.raises(FileNotFoundError, match="seed1 has no weights yet"):
        samples_at(run, 1, 2)


def _one(experiment):
    return experiment.grid(STUDENT), 1


def test_samples_that_were_made_are_remembered_until_the_weights_change(root, monkeypatch):
    run = found(root)["quick/teacher"]
    first = samples_at(run, 2, 2)
    with monkeypatch.context() as patch:
        patch.setattr("tract.metrics.sources.open_run", None)  # would fail if it were called
        assert torch.equal(samples_at(run, 2, 2), first)
    shutil.copy(root / "quick" / f"{NAME[6:]}0" / "model.safetensors", run.folder)
    assert not torch.equal(samples_at(run, 2, 2), first)


def test_a_run_is_deleted_and_its_numbers_stay(root):
    run = found(root)[f"{NAME}0"]
    before = len(results_of(run))
    delete_run(run, root)
    assert f"{NAME}0" not in found(root)
    assert not [
        p for p in (root / "quick").iterdir() if "TRACT-8-2-1-16images-batch4-seed0" in p.name
    ]
    assert len(results_of(run)) == before > 0


def test_a_run_that_is_being_written_is_not_deleted(root):
    run = found(root)[f"{NAME}1"]
    with only_writer(run.folder), pytest.raises(RuntimeError, match="another process is writing"):
        delete_run(run, root)
    assert found(root)[f"{NAME}1"].step == 3


def test_a_folder_that_is_more_than_a_run_is_not_deleted(root):
    run = found(root)[f"{NAME}0"]
    (run.folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"has thesis\.txt, and is more, or something else"):
        delete_run(run, root)
    (run.folder / "thesis.txt").unlink()
    (run.folder / "card.json").rename(root / "card.json")
    with pytest.raises(ValueError, match=r"has no card\.json, and is more, or something else"):
        delete_run(run, root)
    assert (run.folder / "model.safetensors").is_file()


def test_a_run_elsewhere_is_not_deleted(root, tmp_path):
    run = found(root)[f"{NAME}0"]
    with pytest.raises(ValueError, match="does not lie in"):
        delete_run(run, tmp_path / "other")
    target = shutil.move(run.folder, tmp_path / "elsewhere")
    run.folder.symlink_to(target)
    with pytest.raises(ValueError, match="does not lie in"):
        delete_run(run, root)
    assert (target / "model.safetensors").is_file()


def shown(browser):
    return [name for _, name in browser.table.options]


def test_the_table_is_filtered_by_words_and_sorted_by_columns(root):
    browser = RunBrowser(root)
    browser.descending.value = False
    browser.order.value = "run"
    assert shown(browser) == sorted(browser.runs)
    browser.order.value = "images"
    assert shown(browser)[0] == "quick/teacher"
    assert shown(browser)[-1] == "quick/odd"  # nothing is known of it
    browser.descending.value = True
    assert shown(browser)[-2:] == ["quick/teacher", "quick/odd"]
    browser.search.value = "tract FINISHED"
    assert shown(browser) == [f"{NAME}0", f"{NAME}1"]
    browser.search.value = "unfinished"
    assert shown(browser) == [f"{NAME}1"]
    assert browser.count.value == "1 of 4 runs"
    assert "75%" in browser.table.options[0][0]


def test_selected_runs_stay_selected(root):
    browser = RunBrowser(root)
    browser.table.value = (f"{NAME}1", "quick/teacher")
    browser.order.value = "state"
    assert set(browser.table.value) == {f"{NAME}1", "quick/teacher"}
    shutil.rmtree(root / "quick" / "teacher")
    browser.refresh.click()
    assert browser.table.value == (f"{NAME}1",)


def test_every_view_shows_the_selected_runs(root):
    browser = RunBrowser(root)
    browser.table.value = (f"{NAME}0", f"{NAME}1")
    curves = Image.open(io.BytesIO(browser.curves.value))
    browser.view.value = "Samples"
    assert browser.nfe.options == (1, 2, 4, 8)
    one_step = browser.images.value
    browser.nfe.value = 2
    assert browser.images.value != one_step
    browser.view.value = "Parameters"
    assert "settings.seed" in browser.parameters.value
    assert "settings.batch" not in browser.parameters.value
    browser.only.value = False
    assert "settings.batch" in browser.parameters.value
    browser.view.value = "Results"
    assert "rmse_to_rollout" in browser.results.value
    assert browser.pages.selected_index == 3
    picture = Image.open(io.BytesIO(browser.picture()))
    assert picture.height > curves.height


def test_a_damaged_run_is_shown_with_its_reason_beside_whole_ones(root):
    (root / "quick" / f"{NAME[6:]}0" / "model.safetensors").write_bytes(b"no weights")
    browser = RunBrowser(root)
    browser.table.value = ("quick/odd", f"{NAME}0", "quick/teacher")
    assert "odd/card.json is damaged" in browser.message.value
    browser.view.value = "Samples"
    browser.nfe.value = 2
    assert "model.safetensors is damaged" in browser.message.value
    assert browser.images.layout.visibility == "visible"  # the teacher's
    (root / "quick" / "results.csv").write_text("")
    browser.refresh.click()
    browser.view.value = "Results"
    assert "results.csv is damaged" in browser.message.value


def test_a_name_is_no_html(root):
    (root / "<b>bold").mkdir()
    (root / "<b>bold" / "card.json").write_text("")
    browser = RunBrowser(root)
    browser.table.value = ("<b>bold",)
    assert "&lt;b&gt;bold" in browser.message.value
    assert "<b>bold" not in browser.message.value


def test_deleting_asks_first(root):
    browser = RunBrowser(root)
    browser.table.value = (f"{NAME}0",)
    assert browser.confirm.layout.visibility == "hidden"
    browser.delete.click()
    assert browser.confirm.layout.visibility == "visible"
    assert f"{NAME}0" in browser.message.value
    browser.keep.click()
    assert browser.confirm.layout.visibility == "hidden"
    browser.delete.click()
    browser.table.value = ("quick/teacher",)  # another selection was not asked about
    assert browser.confirm.layout.visibility == "hidden"
    assert len(shown(browser)) == 4
    browser.table.value = (f"{NAME}0", "quick/odd")
    browser.delete.click()
    browser.confirm.click()
    assert set(shown(browser)) == {f"{NAME}1", "quick/teacher"}
    assert f"deleted {NAME}0" in browser.message.value


def test_a_folder_without_runs_is_an_empty_table(tmp_path):
    browser = RunBrowser(tmp_path)
    assert shown(browser) == []
    for view in browser.view.options:
        browser.view.value = view
    browser.delete.click()
    assert browser.confirm.layout.visibility == "hidden"
    assert Image.open(io.BytesIO(browser.picture())).height > 10
