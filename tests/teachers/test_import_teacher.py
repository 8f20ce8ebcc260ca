"""Experiments that start from a published teacher, and students of another network than theirs."""

import json
import shutil

import pytest
import torch
from helpers import weights
from tiny import files

from tract.experiments.experiment import TEACHER, Experiment, open_experiment, run_name
from tract.experiments.measure import measure
from tract.experiments.results import read_results
from tract.experiments.run import Checkpointing
from tract.networks.build import build_denoiser, count_parameters, named_network
from tract.networks.weights import fingerprint, load_model, save_model
from tract.settings import Distillation, Training

TRAINING = Training(train_images=8, batch_size=4)


def experiment(folder, **more):
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 4} | more
    return Experiment(folder, "digits", **options)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Somebody's teacher: EDM's levels, with weights that say something."""
    folder = tmp_path_factory.mktemp("published") / "model"
    network = build_denoiser(named_network("digits"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder.mkdir()
    made_for = {
        "experiment": {"noise_schedule": "karras", "teacher_steps": 40},
        "method": "teacher",
    }
    save_model(folder / "model.safetensors", network, made_for)
    return folder


def test_a_published_teacher_becomes_the_teacher_of_the_run_directory(tmp_path, source):
    run_dir = tmp_path / "run"
    begun = experiment(run_dir, noise_schedule="karras")
    teacher = begun.import_teacher(str(source))
    published, _ = load_model(source)
    assert torch.equal(weights(teacher), weights(published))
    card = json.loads((run_dir / TEACHER / "card.json").read_text())
    assert card["source"] == str(source)
    assert card["provenance"]["sha256"] == fingerprint(published)
    assert "352,801 parameters" in card["provenance"]["description"]
    again = open_experiment(run_dir)
    assert again == begun
    student = again.distill(Distillation(train_images=8, batch_size=4, step_schedule=(8, 2, 1)))
    measure(again, teacher, TRAINING, [8, 1])
    measure(
        again, student, Distillation(train_images=8, batch_size=4, step_schedule=(8, 2, 1)), [1]
    )
    table = read_results(run_dir / "results.csv")
    assert list(table["images"]) == [0, 0, 0, 0, 8, 8]  # of the teacher's training we know nothing
    card = json.loads(next(run_dir.glob("TRACT*/card.json")).read_text())
    assert card["teacher"] == str(source)
    assert card["teacher_sha256"] == fingerprint(published)


def test_a_teacher_is_read_once(tmp_path, source, capsys):
    moved = tmp_path / "published"
    shutil.copytree(source, moved)
    begun = experiment(tmp_path / "run", noise_schedule="karras")
    before = weights(begun.import_teacher(str(moved)))
    kept = files(tmp_path / "run")
    shutil.rmtree(moved)
    assert torch.equal(weights(begun.import_teacher(str(moved))), before)
    assert files(tmp_path / "run") == kept
    assert "teacher: already imported, read from" in capsys.readouterr().out


def test_another_teacher_is_refused_where_one_is(tmp_path, source):
    begun = experiment(tmp_path / "run", noise_schedule="karras")
    begun.import_teacher(str(source))
    kept = files(tmp_path / "run")
    with pytest.raises(ValueError, match=r"other values of source \(.*there, 'elsewhere' here\)"):
        begun.import_teacher("elsewhere")
    with pytest.raises(ValueError, match="other values of .*settings"):
        begun.train_teacher("digits", TRAINING)
    assert files(tmp_path / "run") == kept


def test_a_training_that_was_begun_is_not_replaced(tmp_path, source):
    begun = experiment(tmp_path / "run", noise_schedule="karras")

    def stop(denoiser):
        raise KeyError("power cut")

    with pytest.raises(KeyError):
        saving = Checkpointing(steps=1, metric=stop, metric_every=2)
        begun.train_teacher("digits", Training(train_images=16, batch_size=4), saving)
    kept = files(tmp_path / "run")
    with pytest.raises(ValueError, match="was begun with other values of .*source"):
        begun.import_teacher(str(source))
    assert files(tmp_path / "run") == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "teacher knows karras levels with 40 steps, .* cosine with 8: set noise_schedule to",
        ),
        (
            {"noise_schedule": "karras", "conditional": True},
            "has 10 classes, the network takes",
        ),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused_and_nothing_is_left(
    tmp_path, source, options, message
):
    with pytest.raises(ValueError, match=message):
        experiment(tmp_path / "run", **options).import_teacher(str(source))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_ddpms_betas_knows_its_own_number_of_steps_alone(tmp_path, source):
    network, card = load_model(source)
    made_for = {"noise_schedule": "ddpm_linear", "teacher_steps": 1000}
    save_model(tmp_path / "model.safetensors", network, card | {"experiment": made_for})
    with pytest.raises(ValueError, match="and teacher_steps to 1000"):
        experiment(tmp_path / "run", noise_schedule="ddpm_linear").import_teacher(str(tmp_path))
    right = experiment(tmp_path / "run", noise_schedule="ddpm_linear", teacher_steps=1000)
    right.import_teacher(str(tmp_path))


def test_a_missing_teacher_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no-such-file"):
        experiment(tmp_path / "run").import_teacher(str(tmp_path / "no-such-file"))
    assert not (tmp_path / "run").exists()


# ---- Students of another network ---------------------------------------------------------------

SMALL = Distillation(
    train_images=12, batch_size=4, step_schedule=(8, 2, 2, 1), student_network="digits_small"
)


def test_a_smaller_student_is_trained_kept_and_measured_as_what_it_is(tmp_path, source):
    begun = experiment(tmp_path, noise_schedule="karras")
    teacher = begun.import_teacher(str(source))
    measure(begun, teacher, TRAINING, [8])
    student = begun.distill(SMALL)
    measure(begun, student, SMALL, [1])
    small = count_parameters(named_network("digits_small"))
    assert sum(p.numel() for p in student.parameters()) == small
    folder = tmp_path / run_name(SMALL)
    assert (
        folder.name
        == "TRACT-8-2-2-1-12images-batch_size4-clampnone-student_networkdigits_small-seed0"
    )
    card = json.loads((folder / "card.json").read_text())
    assert card["network"] == student.config
    assert student.config["options"]["channels"] == 16
    assert read_results(tmp_path / "results.csv").student_params.tolist()[-1] == small
    again = begun.distill(SMALL)
    assert torch.equal(weights(again), weights(student))


@pytest.mark.parametrize("step", [1, 2])  # a phase has one step
def test_a_smaller_student_resumes_to_the_same_end(tmp_path, source, step):
    whole, cut = (experiment(tmp_path / name, noise_schedule="karras") for name in ("whole", "cut"))
    for each in (whole, cut):
        each.import_teacher(str(source))
    expected = weights(whole.distill(SMALL))

    def stop(denoiser):
        raise KeyError("power cut")

    with pytest.raises(KeyError):
        cut.distill(SMALL, Checkpointing(steps=1, metric=stop, metric_every=step + 1))
    assert torch.equal(weights(cut.distill(SMALL)), expected)
