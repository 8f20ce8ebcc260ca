"""The runs of a study: made and measured once if they are missing; what is wrong comes first."""

import pytest
import torch
from helpers import write_clothes

from tract import ablations, evidence, runs
from tract.ablations import Study
from tract.classifier import Fitting, fit_classifier
from tract.evidence import begin_study, run_missing
from tract.experiment import Experiment
from tract.measuring import measure
from tract.results import read_results
from tract.runs import Saving
from tract.train import Training

SMALL = Study("digits", [0], 512, base={"batch": 16})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small teacher, and ablations of two recipes of few steps."""
    monkeypatch.setattr(
        ablations, "ALL", {"steps": {f"{n}": {"step_schedule": [8, 2, n]} for n in (1, 2)}}
    )
    begun = Experiment(
        tmp_path / "run", "digits", teacher_steps=8, reference_steps=8, num_samples=4
    )
    settings = Training(images=16, batch=16)
    measure(begun, begun.train_teacher("digits", settings), settings, [8])
    return tmp_path


def test_only_what_was_not_measured_is_run_and_its_rows_are_added(folder, monkeypatch, capsys):
    monkeypatch.setitem(ablations.ALL["steps"], "2", {"step_schedule": [8, 4, 2]})
    table = folder / "all.csv"
    run_missing(SMALL, ["steps"], folder / "run", table, Saving())
    assert "2 runs, 0 of them measured before" in capsys.readouterr().out
    rows = read_results(table)
    students = rows[rows["method"] == "TRACT"]
    assert set(students["run"]) == set(SMALL.plan(["steps"]))
    assert set(students["metric"]) == {"fd_pixels", "rmse_to_teacher", "rmse_to_rollout"}
    assert list(SMALL.rows(rows, "steps")["recipe"]) == ["1", "2"]
    monkeypatch.setattr(evidence, "open_experiment", None)  # not even looked at
    run_missing(SMALL, ["steps"], folder / "run", table, Saving())
    assert "2 runs, 2 of them measured before" in capsys.readouterr().out


def test_a_teacher_of_other_data_is_refused_before_anything_is_run(folder):
    other = Study("digits", [0], 512, process="karras")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="has a teacher of digits with cosine levels, not of"):
        run_missing(other, ["steps"], folder / "run", folder / "all.csv", Saving())
    assert sorted(folder.rglob("*")) == before


CLOTHES = Study("fashion_mnist", [0], 32, metric="fd_classifier", base={"batch": 16})
TEACHER = Training(images=32, batch=16)


@pytest.fixture
def clothes(tmp_path):
    """A folder of random clothes, 64 to train on and 32 to test, and an experiment with them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (96, 28, 28), generator=generator).to(torch.uint8)
    labels = (torch.arange(96) % 10).to(torch.uint8)
    write_clothes(tmp_path, train=(images[:64], labels[:64]), t10k=(images[64:], labels[64:]))
    options = {"teacher_steps": 8, "reference_steps": 4, "num_samples": 16}
    return Experiment(tmp_path / "run", "fashion_mnist", str(tmp_path), **options)


def test_a_study_begins_with_a_teacher_and_real_images_in_the_features_of_others(
    clothes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "peak_memory", lambda **_: {"peak_memory_mb": 12.5})
    monkeypatch.setitem(ablations.ALL, "methods", {"TRACT 8>2>1": {"step_schedule": [8, 2, 1]}})
    table, given = tmp_path / "all.csv", tmp_path / "classifier.safetensors"
    fit_classifier(clothes.labelled, given, Fitting(epochs=1))
    features = ["pixels", "classifier"]

    def begin():
        begin_study(
            clothes, "fashion_mnist_tiny", TEACHER, [4, 1], features, table, Saving(),
            classifier=str(given),
        )  # fmt: skip
        run_missing(CLOTHES, ["methods"], tmp_path / "run", table, Saving(), features)

    begin()
    assert (tmp_path / "run" / "classifier.safetensors").read_bytes() == given.read_bytes()
    rows = read_results(table)
    real = rows[rows["run"] == "test"].set_index("metric")
    assert set(real.index) == {"fd_pixels", "fd_classifier"}
    assert set(real["samples"]) == {32}
    assert (real["value"] > 0).all()
    assert set(rows[rows["method"] == "teacher"]["nfe"]) == {4, 1}
    students = rows[rows["method"] == "TRACT"].set_index("metric")
    assert students.loc["peak_memory_mb", "value"] == 12.5
    assert students.loc["fd_classifier", "student_params"] == 248_017
    before = table.read_text()
    monkeypatch.setattr(evidence, "measure", None)  # nothing is measured again
    begin()
    assert table.read_text() == before


def test_a_study_of_another_experiments_folder_or_without_its_classifier_is_not_begun(
    clothes, tmp_path
):
    rest = ("fashion_mnist_tiny", TEACHER, [4], ["pixels"], tmp_path / "all.csv", Saving())
    with pytest.raises(FileNotFoundError, match=r"no classifier .*nowhere: correct the path"):
        begin_study(clothes, *rest, classifier=str(tmp_path / "nowhere"))
    other = Experiment(tmp_path / "run", "digits", teacher_steps=8, reference_steps=4)
    with pytest.raises(ValueError, match="was begun with other values of"):
        begin_study(other, *rest)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["experiment.json"]


def test_data_without_a_test_split_have_no_floor(tmp_path):
    begun = Experiment(tmp_path, "digits", teacher_steps=8, reference_steps=4, num_samples=4)
    begin_study(begun, "digits", TEACHER, [4], ["pixels"], tmp_path / "all.csv", Saving())
    assert set(read_results(tmp_path / "all.csv")["method"]) == {"teacher"}


def test_a_study_can_begin_with_somebody_elses_teacher(clothes, tmp_path):
    first = Experiment(tmp_path / "a", "digits", teacher_steps=8, reference_steps=4, num_samples=4)
    begin_study(first, "digits", TEACHER, [4], ["pixels"], tmp_path / "all.csv", Saving())
    second = Experiment(tmp_path / "b", "digits", teacher_steps=8, reference_steps=4, num_samples=4)
    begin_study(
        second, "digits", TEACHER, [4], ["pixels"], tmp_path / "b.csv", Saving(),
        teacher=str(tmp_path / "a" / "teacher"),
    )  # fmt: skip
    ours, theirs = (read_results(tmp_path / name)["teacher"][0] for name in ("all.csv", "b.csv"))
    assert ours == theirs
