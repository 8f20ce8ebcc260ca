"""The runs of a study: made and measured once if they are missing; what is wrong comes first."""

import pytest
import torch
from helpers import write_clothes

from tract.experiments import run as runs
from tract.experiments.experiment import Experiment, open_experiment
from tract.experiments.measure import measure, measure_real
from tract.experiments.results import read_results
from tract.experiments.run import Checkpointing
from tract.metrics.classifier import fit_classifier
from tract.networks.weights import fingerprint, load_model
from tract.settings import Training
from tract.studies import ablations
from tract.studies import run_study as evidence
from tract.studies.ablations import Study
from tract.studies.run_study import begin_study, export_best, rows_of_samples, run_missing

SMALL = Study("digits", [0], 512, base={"batch_size": 16})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a small teacher, and ablations of two recipes of few steps."""
    monkeypatch.setattr(
        ablations, "ALL", {"steps": {f"{n}": {"step_schedule": [8, 2, n]} for n in (1, 2)}}
    )
    begun = Experiment(
        tmp_path / "run", "digits", teacher_steps=8, reference_steps=8, num_samples=4
    )
    settings = Training(train_images=16, batch_size=16)
    measure(begun, begun.train_teacher("digits", settings), settings, [8])
    return tmp_path


def test_only_what_was_not_measured_is_run_and_its_rows_are_added(folder, monkeypatch, capsys):
    monkeypatch.setitem(ablations.ALL["steps"], "2", {"step_schedule": [8, 4, 2]})
    table = folder / "all.csv"
    run_missing(SMALL, ["steps"], folder / "run", table, Checkpointing())
    assert "2 runs, 0 of them measured before" in capsys.readouterr().out
    rows = read_results(table)
    students = rows[rows["method"] == "TRACT"]
    assert set(students["run"]) == set(SMALL.plan(["steps"]))
    assert set(students["metric"]) == {"fd_pixels", "rmse_to_teacher", "rmse_to_rollout"}
    assert list(SMALL.rows(rows, "steps")["recipe"]) == ["1", "2"]
    monkeypatch.setattr(evidence, "open_experiment", None)  # not even looked at
    run_missing(SMALL, ["steps"], folder / "run", table, Checkpointing())
    assert "2 runs, 2 of them measured before" in capsys.readouterr().out


def test_a_teacher_of_other_data_is_refused_before_anything_is_run(folder):
    other = Study("digits", [0], 512, noise_schedule="karras")
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=r"the teacher \w+ of digits with cosine levels, not one"):
        run_missing(other, ["steps"], folder / "run", folder / "all.csv", Checkpointing())
    assert sorted(folder.rglob("*")) == before


def test_runs_of_another_teacher_in_the_table_are_refused_before_anything_is_run(
    folder, monkeypatch
):
    monkeypatch.setitem(ablations.ALL["steps"], "2", {"step_schedule": [8, 4, 2]})
    table = folder / "all.csv"
    run_missing(SMALL, ["steps"], folder / "run", table, Checkpointing())
    rows = read_results(table)
    rows["teacher"] = "stranger"
    rows[rows["nfe"] == 1].to_csv(table, index=False)
    before = table.read_bytes()
    with pytest.raises(ValueError, match="has 1 of these runs with the teacher stranger, but"):
        run_missing(SMALL, ["steps"], folder / "run", table, Checkpointing())
    assert table.read_bytes() == before


CLOTHES = Study("fashion_mnist_28", [0], 32, metric="fd_classifier", base={"batch_size": 16})
TEACHER = Training(train_images=32, batch_size=16)


@pytest.fixture
def clothes(tmp_path):
    """A folder of random clothes, 64 to train on and 32 to test, and an experiment with them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (96, 28, 28), generator=generator).to(torch.uint8)
    labels = (torch.arange(96) % 10).to(torch.uint8)
    write_clothes(tmp_path, train=(images[:64], labels[:64]), t10k=(images[64:], labels[64:]))
    options = {"teacher_steps": 8, "reference_steps": 4, "num_samples": 16}
    return Experiment(tmp_path / "run", "fashion_mnist_28", str(tmp_path), **options)


def test_a_study_begins_with_a_teacher_and_real_images_in_the_features_of_others(
    clothes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(runs, "peak_memory", lambda **_: {"peak_memory_mb": 12.5})
    monkeypatch.setitem(ablations.ALL, "methods", {"TRACT 8>2>1": {"step_schedule": [8, 2, 1]}})
    table, given = tmp_path / "all.csv", tmp_path / "classifier.safetensors"
    fit_classifier(clothes.labelled, given, epochs=1)
    features = ["pixels", "classifier"]

    def begin():
        begin_study(
            clothes, "fashion_mnist_cpu", TEACHER, [4, 1], features, table, Checkpointing(),
            classifier=str(given),
        )  # fmt: skip
        run_missing(CLOTHES, ["methods"], tmp_path / "run", table, Checkpointing(), features)

    begin()
    assert (tmp_path / "run" / "classifier.safetensors").read_bytes() == given.read_bytes()
    rows = read_results(table)
    real = rows[rows["run"] == "test"].set_index("metric")
    assert set(real.index) == {"fd_pixels", "fd_classifier"}
    assert set(real["samples"]) == {16}  # as many as were sampled of the teacher
    assert (real["value"] > 0).all()
    assert set(rows[rows["method"] == "teacher"]["nfe"]) == {4, 1}
    students = rows[rows["method"] == "TRACT"].set_index("metric")
    assert students.loc["peak_memory_mb", "value"] == 12.5
    assert students.loc["fd_classifier", "student_params"] == 777_764
    before = table.read_text()
    monkeypatch.setattr(evidence, "measure", None)  # nothing is measured again
    begin()
    assert table.read_text() == before
    fit_classifier(clothes.labelled, given, epochs=1, seed=1)
    with pytest.raises(ValueError, match="are different classifiers, .*: give another run_dir"):
        begin()


def test_a_teacher_that_was_measured_in_fewer_features_is_measured_in_all(clothes, tmp_path):
    table = tmp_path / "all.csv"
    rest = ("fashion_mnist_cpu", TEACHER, [4])
    begin_study(clothes, *rest, ["pixels"], table, Checkpointing())
    begin_study(clothes, *rest, ["pixels", "classifier"], table, Checkpointing())
    assert {"fd_pixels", "fd_classifier"} <= set(read_results(table).query("nfe == 4")["metric"])


def test_a_study_of_another_experiments_folder_or_without_its_classifier_is_not_begun(
    clothes, tmp_path
):
    rest = ("fashion_mnist_cpu", TEACHER, [4], ["pixels"], tmp_path / "all.csv", Checkpointing())
    with pytest.raises(FileNotFoundError, match=r"no classifier .*nowhere: correct the path"):
        begin_study(clothes, *rest, classifier=str(tmp_path / "nowhere"))
    other = Experiment(tmp_path / "run", "digits", teacher_steps=8, reference_steps=4)
    with pytest.raises(ValueError, match="was begun with other values of"):
        begin_study(other, *rest)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["experiment.json"]


def test_a_teacher_that_has_students_or_numbers_already_stays_what_it_is(clothes, tmp_path):
    weights = tmp_path / "run" / "teacher" / "model.safetensors"
    rest = ("fashion_mnist_cpu", TEACHER, [4], ["pixels"], tmp_path / "all.csv", Checkpointing())
    teacher = clothes.train_teacher("fashion_mnist_cpu", TEACHER)
    measure(clothes, teacher, TEACHER, [4, 2])  # as notebook 01 does
    before = weights.read_bytes()
    study = begin_study(clothes, *rest)
    assert weights.read_bytes() == before
    rows = read_results(tmp_path / "all.csv").query("method == 'teacher'")
    assert set(rows["teacher"]) == {fingerprint(study)[:12]} == {fingerprint(teacher)[:12]}


def test_what_a_study_cannot_measure_is_refused_before_its_teacher_is_trained(clothes, tmp_path):
    rest = (tmp_path / "all.csv", Checkpointing())
    with pytest.raises(ValueError, match="num_steps is 3"):
        begin_study(clothes, "fashion_mnist_cpu", TEACHER, [4, 3], ["pixels"], *rest)
    with pytest.raises(ValueError, match="features is 'nope'"):
        begin_study(clothes, "fashion_mnist_cpu", TEACHER, [4], ["nope"], *rest)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["experiment.json"]


def test_without_a_test_split_the_floor_is_of_the_data_themselves(tmp_path):
    begun = Experiment(tmp_path, "digits", teacher_steps=8, reference_steps=4, num_samples=1797)
    measure_real(begun, ["pixels"])
    (row,) = read_results(tmp_path / "results.csv").to_dict("records")
    assert row["method"] == "real images" and row["samples"] == 1797
    assert row["value"] == pytest.approx(0, abs=1e-6)  # all of them, against all of them


def test_a_study_goes_on_elsewhere_with_the_same_teacher_from_a_file(tmp_path):
    options = {"teacher_steps": 8, "reference_steps": 4, "num_samples": 4}
    table, study = tmp_path / "all.csv", Study("digits", [0], 5120)
    first = Experiment(tmp_path / "a", "digits", **options)
    begin_study(first, "digits", TEACHER, [4], ["pixels"], table, Checkpointing())
    before = read_results(table)
    export_best(study, ["methods"], tmp_path / "a", tmp_path / "m", [1])
    second = Experiment(tmp_path / "b", "digits", **options)
    file = str(tmp_path / "m_teacher.safetensors")
    begin_study(second, "digits", TEACHER, [4], ["pixels"], table, Checkpointing(), teacher=file)
    after = read_results(table)
    assert len(after) == len(before)
    assert list(after["images"]) == list(before["images"])
    assert set(after[after["method"] == "teacher"]["images"]) == {32}
    assert list(after["teacher"]) == list(before["teacher"])
    begin_study(
        second,
        "digits",
        TEACHER,
        [4],
        ["pixels"],
        tmp_path / "new.csv",
        Checkpointing(),
        teacher=file,
    )
    new = read_results(tmp_path / "new.csv").query("method == 'teacher'")
    assert set(new["images"]) == {32}


def test_the_best_students_are_kept_in_half_precision_and_never_replaced(
    folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(ablations.ALL["steps"], "2", {"step_schedule": [8, 4, 2]})
    table = tmp_path / "all.csv"
    study = Study("digits", [0, 1], 512, base={"batch_size": 16})
    run_missing(study, ["steps"], tmp_path / "run", table, Checkpointing())
    rows = read_results(tmp_path / "run" / "results.csv")
    ours = study.rows(rows, "steps").query("nfe == 2")
    best = ours.loc[ours["value"].astype(float).idxmin(), "run"]
    export_best(study, ["steps"], tmp_path / "run", tmp_path / "m" / "d", [1, 2, 4])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "d_1step.safetensors", "d_2steps.safetensors", "d_teacher.safetensors",
    ]  # fmt: skip
    card = load_model(tmp_path / "m" / "d_2steps.safetensors")[1]
    assert f"seed{card['settings']['seed']}" in best
    before = (tmp_path / "m" / "d_2steps.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    export_best(study, ["steps"], tmp_path / "run", tmp_path / "m" / "d", [2])
    assert (tmp_path / "m" / "d_2steps.safetensors").stat().st_mtime_ns == before
    assert "d_2steps.safetensors exists already, and is kept" in capsys.readouterr().out


def test_the_picture_has_the_best_student_of_each_method_beside_its_teacher(folder, monkeypatch):
    recipes = {
        "1": {"step_schedule": [8, 2, 1]},
        "one phase": {"step_schedule": [8, 1]},
        "2": {"step_schedule": [8, 4, 2]},
        "BTD": {"step_schedule": [8, 4, 2, 1], "method": "BTD"},
        "8": {"step_schedule": [16, 8]},
    }
    monkeypatch.setitem(ablations.ALL, "steps", recipes)
    run_missing(SMALL, ["steps"], folder / "run", folder / "all.csv", Checkpointing())
    settings = Training(train_images=16, batch_size=16)
    teacher, _ = load_model(folder / "run/teacher")
    measure(open_experiment(folder / "run"), teacher, settings, [8, 1])
    rows = SMALL.rows(read_results(folder / "run/results.csv"), "steps").query("nfe == 1")
    values = rows.set_index("recipe")["value"].astype(float)
    best = "TRACT 8>2>1" if values["1"] < values["one phase"] else "TRACT 8>1"
    rows = rows_of_samples(SMALL, ["steps"], folder / "run", 2, [1, 2])
    assert list(rows) == [
        "data", "teacher, 8 steps", "TRACT 8>4>2, 2 steps", "teacher, 1 step",
        "BTD 8>4>2>1, 1 step", f"{best}, 1 step",
    ]  # fmt: skip
