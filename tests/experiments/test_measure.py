"""Distances of samples to an experiment's data, in the features that were asked for."""

import json

import pytest
import torch

from tract.cli.main import main
from tract.data import to_unit
from tract.experiments import measure as measuring
from tract.experiments.experiment import Experiment
from tract.experiments.measure import Distance, measure
from tract.experiments.results import read_results
from tract.networks.weights import read_tensors
from tract.settings import Training


def experiment(folder, **more):
    return Experiment(folder, "digits", teacher_steps=8, reference_steps=8, num_samples=16, **more)


def test_pixels_are_compared_on_the_scale_of_samples(tmp_path):
    begun = experiment(tmp_path)
    distance = Distance(begun, "pixels")
    assert distance.metric == "fd_pixels"
    assert distance(to_unit(begun.data.samples)) == pytest.approx(0, abs=1e-6)
    # The negative, which is exact in grey levels too: another mean and the same covariance.
    x = to_unit(begun.data.samples)
    expected = 4 * x.flatten(1).double().mean(0).square().sum()
    assert distance(-x) == pytest.approx(expected.item(), rel=1e-6)


def test_a_classifier_is_trained_on_the_labels_once_and_kept_beside_the_runs(tmp_path):
    begun = experiment(tmp_path)
    assert begun.data.labels is None
    first = Distance(begun, "classifier")
    path = tmp_path / "classifier.safetensors"
    before = path.stat().st_mtime_ns
    second = Distance(begun, "classifier")
    assert path.stat().st_mtime_ns == before
    assert first.metric == "fd_classifier"
    real, noise = to_unit(begun.data.samples[:200]), torch.rand(200, 1, 8, 8) * 2 - 1
    assert first(real) == second(real) < 0.5 * first(noise)
    assert first.conditions["accuracy"] == read_tensors(path)[1]["accuracy"] > 0.9


def test_every_kind_of_feature_is_a_row_with_what_it_depends_on(tmp_path):
    begun, settings = experiment(tmp_path), Training(train_images=4, batch_size=4)
    teacher = begun.train_teacher("digits", settings)
    table = measure(begun, teacher, settings, [8], ["pixels", "classifier"])
    assert {"fd_pixels", "fd_classifier", "rmse_to_teacher"} <= set(table.columns)
    rows = read_results(tmp_path / "results.csv").set_index("metric")
    conditions = json.loads(rows.loc["fd_classifier", "conditions"])
    assert conditions["reference"]["sha256"] == begun.labelled.sha256
    assert len(conditions["weights_sha256"]) == 64


def test_features_that_do_not_exist_are_refused_before_anything_is_sampled(tmp_path):
    begun, settings = experiment(tmp_path), Training(train_images=4, batch_size=4)
    teacher = begun.train_teacher("digits", settings)
    with pytest.raises(ValueError, match="features is 'colour': choose one of"):
        measure(begun, teacher, settings, [8], ["colour"])
    assert not (tmp_path / "teacher" / "samples.safetensors").exists()


def test_a_fid_of_a_run_becomes_a_row_of_results_with_all_its_conditions(tmp_path, capsys):
    begun, settings = experiment(tmp_path / "runs"), Training(train_images=4, batch_size=4, seed=3)
    measure(begun, begun.train_teacher("digits", settings), settings, [8])
    run, table = str(tmp_path / "runs" / "teacher"), str(tmp_path / "all.csv")
    command = ["fid", run, "digits", "--features", "pixels", "--metrics", "fd", "kid"]
    command += ["--steps", "2", "--samples", "80", "--seeds", "0", "1", "--results", table]
    capsys.readouterr()
    assert main([*command, "--json"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = read_results(table)
    assert list(rows["metric"]) == ["fd_pixels", "kd_pixels"]
    assert list(rows["value"]) == [pytest.approx(row["value"], abs=1e-6) for row in shown]
    about = ["data", "method", "nfe", "samples", "images", "seed", "run"]
    assert rows[about].values.tolist() == [["digits", "teacher", 2, 80, 4, 3, "teacher"]] * 2
    conditions = json.loads(rows["conditions"][0])
    assert conditions["values"] == shown[0]["values"]
    assert conditions["features"]["name"] == "pixels"
    assert conditions["reference"]["sha256"] == begun.labelled.sha256


def test_numbers_of_what_is_no_run_have_no_row_and_are_refused_before_measuring(tmp_path, capsys):
    command = ["fid", "digits", "digits", "--features", "pixels", "--results", str(tmp_path / "a")]
    assert main(command) == 1
    assert "digits is not a run directory" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_of_many_samples_the_first_are_kept_and_compared_with_the_teachers(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "KEPT", 3)
    begun, settings = experiment(tmp_path), Training(train_images=4, batch_size=4)
    measure(begun, begun.train_teacher("digits", settings), settings, [8, 2])
    assert read_tensors(tmp_path / "teacher" / "samples.safetensors")[0]["2"].shape[0] == 3
    rows = read_results(tmp_path / "results.csv").query("nfe == 2").set_index("metric")
    assert rows["samples"].to_dict() == {"fd_pixels": 16, "rmse_to_teacher": 3}
