"""A whole small experiment in one folder: teacher, students, measurements, and what is refused."""

import dataclasses
import json
import shutil

import pandas as pd
import pytest
import torch
from PIL import Image

from tract.data import to_uint8, to_unit
from tract.denoiser import clamped
from tract.experiments.experiment import TEACHER, Experiment, open_experiment, run_name
from tract.experiments.measure import (
    comparison,
    measure,
    measure_phases,
    saved_samples,
)
from tract.experiments.results import read_results, wide
from tract.levels import cosine, karras, levels_of
from tract.metrics.distances import frechet_distance, moments_of
from tract.networks.named import NETWORKS
from tract.networks.weights import load_model, save_model
from tract.samplers import SOLVERS, ddim_x0, sample
from tract.settings import Distillation, Training

TRAINING = Training(train_images=8, batch_size=4)
STUDENT = Distillation(train_images=8, batch_size=4, step_schedule=(8, 2, 1), seed=3)


def experiment(folder, **more):
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 4} | more
    return Experiment(folder, "digits", **options)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An experiment with a teacher and a student, both measured."""
    begun = experiment(tmp_path_factory.mktemp("runs") / "quick")
    measure(begun, begun.train_teacher("digits", TRAINING), TRAINING, [8, 1])
    measure(begun, begun.distill(STUDENT), STUDENT, [1])
    return begun


def test_the_folder_tells_the_next_notebook_everything(done):
    again = open_experiment(done.folder)
    assert again == done
    assert again.card() == done.card()


def test_every_measured_number_is_a_row(done):
    table = read_results(done.folder / "results.csv")
    about = ["method", "schedule", "nfe", "images", "seed", "student_params", "samples", "run"]
    name = "TRACT-8-2-1-8images-batch_size4-clampnone-seed3"
    for metric in ("fd_pixels", "rmse_to_teacher"):
        rows = table.loc[table["metric"] == metric, about].values.tolist()
        assert rows == [
            ["teacher", "", 8, 8, 0, 352801, 4, "teacher"],
            ["teacher", "", 1, 8, 0, 352801, 4, "teacher"],
            ["TRACT", "8>2>1", 1, 8, 3, 352801, 4, name],
        ]
    assert set(table["data"]) == {"digits"}
    assert set(table["noise_schedule"]) == {"cosine"}
    assert len(set(table["teacher"])) == 1  # the student's teacher is the one that was measured


def test_rows_measure_the_samples_that_were_kept(done):
    table = wide(read_results(done.folder / "results.csv"))
    reference = saved_samples(done, TEACHER)[8]
    for row, name in zip(table.itertuples(), [TEACHER, TEACHER, run_name(STUDENT)], strict=True):
        samples = saved_samples(done, name)[row.nfe]
        assert samples.shape == (4, 1, 8, 8)
        # Rows are rounded to six digits after the point.
        pixels = to_unit(to_uint8(samples)).flatten(1), to_unit(done.data.samples).flatten(1)
        expected = frechet_distance(*map(moments_of, pixels))
        assert row.fd_pixels == pytest.approx(expected, abs=1e-6)
        distance = (samples - reference).square().mean().sqrt().item()
        assert row.rmse_to_teacher == pytest.approx(distance, abs=1e-6)


def test_conditions_stand_beside_every_number(done):
    table = read_results(done.folder / "results.csv").set_index("metric")
    (conditions,) = set(table.loc["fd_pixels", "conditions"])
    reference = {"sha256": done.data.sha256, "seed": 0}
    assert json.loads(conditions) == {"reference": reference, "range": [-1, 1]}
    (conditions,) = set(table.loc["rmse_to_teacher", "conditions"])
    assert json.loads(conditions) == {"nfe": 8}


def test_measuring_again_replaces_the_rows(done):
    path = done.folder / "results.csv"
    before = read_results(path)
    student, _ = load_model(done.folder / run_name(STUDENT))
    measure(done, student, STUDENT, [1])
    pd.testing.assert_frame_equal(read_results(path), before)


def test_samples_at_other_steps_stay_and_rows_without_samples_are_not_drawn(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    copy = dataclasses.replace(done, folder=folder)
    before = saved_samples(copy, TEACHER)
    teacher, _ = load_model(folder / TEACHER)
    table = measure(copy, teacher, TRAINING, [8, 4])
    after = saved_samples(copy, TEACHER)
    assert list(after) == [8, 4, 1]
    assert torch.equal(after[1], before[1])
    elsewhere = table.iloc[:1].assign(nfe=2)  # as `tract fid` adds it, without keeping samples
    (folder / run_name(STUDENT) / "samples.safetensors").unlink()
    rows = comparison(copy, pd.concat([table, elsewhere]), 2)
    assert sorted(rows) == ["data", "teacher, 1 step", "teacher, 4 steps", "teacher, 8 steps"]


def test_a_folder_of_data_is_found_from_any_other_folder(tmp_path, monkeypatch):
    for name in ("images", "elsewhere"):
        (tmp_path / name).mkdir()
    for i in range(2):
        Image.new("L", (8, 8), 100 * i).save(tmp_path / "images" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    options = {"data_name": "images", "data_dir": "images", "image_size": 8, "grey": True}
    Experiment("run", teacher_steps=8, reference_steps=8, num_samples=4, **options).begin()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(open_experiment("../run").data) == 2


def test_further_averages_are_measured_as_what_a_run_of_their_residual_leads_to(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    copy = dataclasses.replace(done, folder=folder)
    several = dataclasses.replace(STUDENT, step_schedule=(8, 1), more_residuals=(0.1, 0.5))
    measure(copy, copy.distill(several), several, [1])
    rows = read_results(folder / "results.csv").query("metric == 'fd_pixels'").set_index("run")
    for residual in several.more_residuals:
        alone = dataclasses.replace(several, ema_residual=residual, more_residuals=())
        measure(copy, copy.distill(alone), alone, [1])
        found = read_results(folder / "results.csv").set_index(["run", "metric"])["value"]
        value = rows.loc[f"{run_name(several)}-average{residual:g}", "value"]
        assert value == found[run_name(alone), "fd_pixels"]
    averages = rows.loc[rows.index.str.startswith(run_name(several)), "value"]
    assert averages.nunique() == len(averages) == 3


@pytest.mark.parametrize("step", ["ddim", "heun"])
def test_every_phase_is_compared_with_the_first_teachers_rollout(done, tmp_path, step):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    copy = dataclasses.replace(done, folder=folder)
    settings = dataclasses.replace(STUDENT, solver=step)
    folder.joinpath(run_name(STUDENT)).rename(folder / run_name(settings))
    measure_phases(copy, settings, count=3)
    table = read_results(folder / "results.csv")
    rows = table[table["metric"] == "rmse_to_rollout"]
    assert rows[["schedule", "nfe", "samples"]].values.tolist() == [["8>2", 2, 3], ["8>2>1", 1, 3]]
    teacher, _ = load_model(folder / TEACHER)
    for value, steps, file in zip(rows["value"], (2, 1), ("phase-1", "model"), strict=True):
        student, _ = load_model(folder / run_name(settings) / f"{file}.safetensors")
        ours, rollout = (
            sample(clamped(model), copy.noise[0][:3], cosine(8), n, solver=estimate)
            for model, n, estimate in ((student, steps, ddim_x0), (teacher, 8, SOLVERS[step]))
        )
        distance = (ours - rollout).square().mean().sqrt().item()
        assert value == pytest.approx(distance, abs=1e-6)


def test_phases_before_and_after_a_change_of_network_are_measured(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    copy = dataclasses.replace(done, folder=folder)
    changes = {"step_schedule": (8, 4, 4, 1), "student_network": "digits_small"}
    settings = dataclasses.replace(STUDENT, train_images=12, **changes)
    copy.distill(settings)
    measure_phases(copy, settings, count=3)
    rows = read_results(folder / "results.csv").query("metric == 'rmse_to_rollout'")
    sizes = rows.set_index("schedule")["student_params"]
    assert sizes["8>4"] > 3 * sizes["8>4>4"] == 3 * sizes["8>4>4>1"]


def test_a_schedule_decides_how_many_levels_its_run_steps_through(done):
    longer = Distillation(train_images=8, batch_size=4, step_schedule=(16, 1))
    assert torch.equal(done.grid(longer).sigma, cosine(16).sigma)
    assert torch.equal(done.grid(TRAINING).sigma, cosine(8).sigma)


def test_levels_that_only_their_own_number_of_steps_has_are_not_replaced(tmp_path):
    begun = experiment(tmp_path, noise_schedule="ddpm_linear")
    with pytest.raises(ValueError, match="step_schedule starts with 16, .*the teacher's 8"):
        begun.grid(Distillation(train_images=8, batch_size=4, step_schedule=(16, 1)))


def test_the_teacher_of_a_student_is_on_its_card(done):
    card = json.loads((done.folder / run_name(STUDENT) / "card.json").read_text())
    assert card["teacher"]["train_images"] == TRAINING.train_images
    assert card["experiment"]["data_sha256"] == done.data.sha256
    assert card["settings"]["step_schedule"] == [8, 2, 1]


def test_the_comparison_has_data_and_every_row_of_the_table(done):
    rows = comparison(done, wide(read_results(done.folder / "results.csv")), 3)
    assert list(rows) == ["data", "teacher, 8 steps", "teacher, 1 step", "TRACT 8>2>1, 1 step"]
    assert torch.equal(rows["teacher, 1 step"], saved_samples(done, TEACHER)[1][:3])
    assert {len(images) for images in rows.values()} == {3}


def test_an_experiment_of_other_levels_is_refused_in_the_same_folder(done):
    before = (done.folder / "experiment.json").read_bytes()
    with pytest.raises(ValueError, match=r"teacher_steps \(8 there, 16 here\).*run_dir"):
        experiment(done.folder, teacher_steps=16).train_teacher("digits", TRAINING)
    assert (done.folder / "experiment.json").read_bytes() == before


def test_data_that_changed_are_refused(done, tmp_path):
    card = json.loads((done.folder / "experiment.json").read_text())
    (tmp_path / "experiment.json").write_text(json.dumps(card | {"data_sha256": "0"}))
    opened = open_experiment(tmp_path)  # which reads no data
    with pytest.raises(ValueError, match="the data digits have changed .*: restore them, or begi"):
        _ = opened.noise


def test_a_folder_without_an_experiment_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no {tmp_path}/experiment.json: execute 01_"):
        open_experiment(tmp_path)


def test_samples_that_nobody_made_are_refused_with_what_to_do(done):
    with pytest.raises(FileNotFoundError, match="no .*BTD-8.*: execute the notebook"):
        saved_samples(done, "BTD-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference_steps": 3}, "num_steps is 3, .*choose a divisor of 8"),
        ({"num_samples": 1}, "num_samples is 1: use 2 or more"),
        ({"noise_schedule": "linear"}, "noise_schedule is 'linear': choose one of .*'cosine'"),
        ({"teacher_steps": 0}, "num_steps is 0: use 1 or more"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_when_it_is_made(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path / "never", **options)
    assert not (tmp_path / "never").exists()


def test_a_network_that_does_not_fit_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="choose another network or other data"):
        experiment(tmp_path / "never").train_teacher("cifar10", TRAINING)
    assert not (tmp_path / "never").exists()


def test_a_batch_that_was_refused_does_not_claim_the_folder(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 2000 but digits has 1797 samples"):
        experiment(tmp_path).train_teacher("digits", Training(train_images=2000, batch_size=2000))
    assert not (tmp_path / TEACHER).exists()


def test_a_conditional_experiment_teaches_the_labels(tmp_path):
    begun = experiment(tmp_path, conditional=True)
    teacher = begun.train_teacher("digits", TRAINING)
    assert teacher.config["options"]["num_classes"] == 10
    assert "num_classes" not in NETWORKS["digits"]
    assert measure(begun, teacher, TRAINING, [8])["nfe"].tolist() == [8]


def test_levels_have_the_names_of_their_processes():
    assert torch.equal(levels_of("karras", 5).sigma, karras(5).sigma)
    assert torch.equal(levels_of("cosine", 5).sigma, cosine(5).sigma)


def test_runs_are_named_by_what_tells_them_apart():
    assert run_name(TRAINING) == "teacher"
    plain = Distillation(train_images=256, step_schedule=(8, 1))
    assert run_name(plain) == "TRACT-8-1-256images-clampnone-seed0"
    plain = dataclasses.replace(plain, clamp="all")  # left out: the default when names began
    assert run_name(plain) == "TRACT-8-1-256images-seed0"
    growing = dataclasses.replace(plain, step_schedule=[[4, 8], 1])
    assert run_name(growing) == "TRACT-4_8-1-256images-seed0"
    changed = dataclasses.replace(plain, self_ema=0.9, learning_rate=2e-4, seed=1)
    assert run_name(changed) == "TRACT-8-1-256images-learning_rate0.0002-self_ema0.9-seed1"


OTHER = {
    "train_images": 1024,
    "batch_size": 64,
    "learning_rate": 2e-4,
    "warmup": 64,
    "cooldown": 0.5,
    "loss": "norm",
    "loss_reduction": "sum",
    "loss_weight": "uniform",
    "ema_residual": 1e-4,
    "clip_norm": 2.0,
    "seed": 1,
    "step_schedule": (8, 4, 4, 1),
    "method": "BTD",
    "solver": "heun",
    "self_ema": 0.9,
    "more_residuals": (1e-8, 0.15),
    "phase_change": "carry_on",
    "clamp": "self_teacher",
    "student_network": "digits_small",
    "student_prediction": "v",
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Distillation)])
def test_no_two_settings_share_a_run(name):
    settings = Distillation(train_images=512, step_schedule=(8, 4, 4, 2))
    assert run_name(dataclasses.replace(settings, **{name: OTHER[name]})) != run_name(settings)


def test_a_student_goes_on_from_its_own_teacher_alone(done, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(done.folder, folder)
    teacher, card = load_model(folder / TEACHER)
    with torch.no_grad():
        next(teacher.parameters())[0] += 1e-3
    save_model(folder / TEACHER / "model.safetensors", teacher, card)
    with pytest.raises(ValueError, match="other values of teacher_sha256"):
        experiment(folder).distill(STUDENT)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder of pictures that the digits' network fits, once they are small and grey."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        Image.new("RGB", (32, 24), (30 * number,) * 3).save(tmp_path / f"pictures/{number}.png")
    return str(tmp_path / "pictures")


def test_an_experiment_on_any_pictures_is_opened_as_it_was_made(pictures, tmp_path):
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 4}
    options |= {"image_size": 8, "grey": True, "flip": True}
    begun = Experiment(tmp_path / "runs", "images", pictures, **options)
    begun.train_teacher("digits", TRAINING)
    again = open_experiment(tmp_path / "runs")
    assert again == begun
    assert again.data.flip
    assert again.data.samples[:, 0, 3, 3].tolist() == [30 * number for number in range(8)]


def test_choices_that_data_have_not_stay_out_of_the_card(done):
    card = json.loads((done.folder / "experiment.json").read_text())
    assert not card.keys() & {"image_size", "grey", "flip"}


def test_classes_that_the_data_have_not_are_refused(pictures, tmp_path):
    with pytest.raises(ValueError, match="conditional is True, but not all images are in folders"):
        Experiment(tmp_path, "images", pictures, conditional=True, image_size=8)


def test_a_network_may_know_more_classes_than_the_data_have(tmp_path):
    begun = Experiment(tmp_path, "digits", conditional=True, num_classes=11)
    assert begun.data.num_classes == 11  # one for no class at all
    labels = begun.noise[1]
    assert labels.unique().tolist() == list(range(10))  # those that are there are sampled
    begun.begin()
    assert begun.card()["classes"] == list(range(10))  # so that no other is sampled
    assert open_experiment(tmp_path).num_classes == 11
    card = Experiment(tmp_path, "digits").card()  # old cards stay valid
    assert card.keys().isdisjoint({"num_classes", "classes"})
