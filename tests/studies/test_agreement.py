"""Students computed in several ways: their rows, what is missing, and the table by hand."""

import json

import pandas as pd
import pytest

from tract.base.compute import compute_of
from tract.cli.main import main
from tract.experiments.experiment import TEACHER, Experiment
from tract.experiments.measure import measure
from tract.experiments.results import read_results
from tract.settings import Distillation, Training
from tract.studies.agreement import agreement_table, results_of, run_agreement

WAYS = [compute_of("fp32"), compute_of("fp32+micro_batch=8")]
SETTINGS = Distillation(step_schedule=[4, 2, 1], train_images=32, batch_size=16)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A folder with a measured teacher."""
    folder = tmp_path_factory.mktemp("run")
    experiment = Experiment(
        folder, "digits", teacher_steps=4, reference_steps=2, num_samples=4, seed=3
    )
    settings = Training(train_images=16, batch_size=16)
    measure(experiment, experiment.train_teacher("digits_small", settings), settings, [2])
    return folder


def test_every_way_is_measured_with_every_seed_once(run_dir, tmp_path, monkeypatch):
    table = tmp_path / "results.csv"
    run_agreement(run_dir, table, SETTINGS, [0, 1], WAYS)
    rows = read_results(table)
    distances = rows[rows["metric"] == "fd_pixels"]
    assert list(distances["seed"]) == [0, 1, 0, 1]
    told = [json.loads(conditions)["compute"] for conditions in distances["conditions"]]
    assert told == ["fp32", "fp32", "fp32+micro_batch=8", "fp32+micro_batch=8"]
    assert len(set(distances["run"])) == 4
    values = list(distances["value"])
    assert values[0] != values[1]
    assert values[:2] == pytest.approx(values[2:], rel=1e-3)
    assert not (run_dir / "agreement" / "fp32" / TEACHER / ".lock").exists()
    monkeypatch.setattr(Experiment, "distill", None)  # nothing is left to do
    run_agreement(run_dir, table, SETTINGS, [0, 1], WAYS)
    found = agreement_table(results_of(run_dir, table), SETTINGS, [0, 1], WAYS)
    assert list(found["seeds"]) == [2, 2]
    rows.assign(teacher="another").to_csv(table, index=False)
    found = agreement_table(results_of(run_dir, table), SETTINGS, [0, 1], WAYS)
    assert found["seeds"].isna().all()
    with pytest.raises(TypeError):  # and would be run
        run_agreement(run_dir, table, SETTINGS, [0, 1], WAYS)


def test_the_table_compares_means_with_the_noise_of_seeds():
    values = {"fp32": [1.0, 2.0, 3.0], "fp32+micro_batch=8": [2.0, 4.0, 6.0]}
    rows = [
        {"run": f"TRACT-4-2-1-32images-batch16-seed{seed}-{way}", "metric": metric, "value": value}
        for way, seeds in values.items()
        for seed, value in enumerate(seeds)
        for metric in ("fd_pixels", "rmse_to_teacher")
    ]
    table = agreement_table(pd.DataFrame(rows), SETTINGS, [0, 1, 2], WAYS)
    assert list(table["compute"]) == list(values)
    assert list(table["fd_pixels"]) == [2, 4]
    assert list(table["std"]) == [1, 2]
    assert list(table["difference"]) == [0, 2]
    # 2 sqrt(1 / 3 + 1 / 3) and 2 sqrt(1 / 3 + 4 / 3)
    assert list(table["noise of seeds"]) == pytest.approx([1.633, 2.582], abs=1e-3)


def test_without_a_teacher_nothing_is_made(tmp_path, capsys):
    assert main(["agreement", str(tmp_path), "--results", str(tmp_path / "results.csv")]) == 1
    assert f"no {tmp_path / 'experiment.json'}: execute 01_teacher" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
