"""Explorers: what is dragged changes what is shown, and what cannot be is said."""

import io

import pytest
import torch
from PIL import Image

from tract.experiments.experiment import Experiment
from tract.lab.explorer import NoiseExplorer, ScheduleExplorer
from tract.levels import cosine
from tract.networks.weights import load_model
from tract.oracle import Mixture
from tract.samplers import sample
from tract.settings import Distillation, Training


@pytest.fixture
def schedules(generator):
    teacher = Mixture(torch.randn(5, 2, generator=generator), std=0.1)
    eps = torch.randn(8, 2, generator=generator)
    return ScheduleExplorer(teacher, cosine(16), eps, teacher.means)


def shown(explorer):
    pictures = explorer.pictures.value.split("<img")
    return pictures[1], pictures[2], explorer.said.value


def test_dragging_a_schedule_moves_student_groups_and_words(schedules):
    assert schedules.step_schedule == [16, 4, 1]
    map_before, groups_before, said = shown(schedules)
    assert "<b>16&gt;4</b> 4 of 4, <b>4&gt;1</b> 4 of 4" in said
    schedules.between.value = "none"
    assert schedules.step_schedule == [16, 1]
    map_now, groups_now, said = shown(schedules)
    assert map_now != map_before
    assert groups_now != groups_before
    assert "<b>16&gt;1</b> 8 of 16" in said
    schedules.rounds.value = 16
    assert "<b>16&gt;1</b> 16 of 16" in schedules.said.value
    schedules.rounds.value = 0
    assert "<b>16&gt;1</b> 0 of 16" in schedules.said.value
    assert shown(schedules)[0] != map_now
    assert shown(schedules)[1] == groups_now
    schedules.between.value, schedules.rounds.value = 4, 8
    assert shown(schedules)[:2] == (map_before, groups_before)


def test_pictures_keep_their_size(schedules):
    sizes = set()
    for method in ("TRACT", "BTD"):
        schedules.method.value = method
        sizes.add(Image.open(io.BytesIO(schedules.map)).size)
    assert sizes == {(900, 325)}


def test_halving_takes_every_phase_of_btd(schedules):
    schedules.method.value = "BTD"
    assert schedules.step_schedule == [16, 8, 4, 2, 1]
    assert "<b>16&gt;8</b> 2 of 2" in schedules.said.value


def test_a_schedule_that_cannot_be_is_said_in_red_and_nothing_else_changes(schedules):
    before = shown(schedules)
    schedules.between.value = 2
    schedules.end.value = 4
    assert "4 does not decrease from 2" in schedules.said.value
    assert "tract-bad" in schedules.said.value
    schedules.between.value = 4
    schedules.end.value = 1
    assert shown(schedules) == before


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    options = {"teacher_steps": 8, "reference_steps": 8, "num_samples": 16}
    begun = Experiment(tmp_path_factory.mktemp("runs"), "digits", **options)
    begun.train_teacher("digits", Training(train_images=8, batch_size=4))
    begun.distill(Distillation(train_images=16, batch_size=4, step_schedule=(8, 2, 1)))
    return begun


def test_students_land_where_their_own_steps_lead_from_the_same_noise(experiment):
    explorer = NoiseExplorer(experiment)
    student = next(experiment.folder.glob("TRACT-*"))
    assert {steps: list(images) for steps, images in explorer.landed.items()} == {
        "1 step": ["teacher\n8 steps", "teacher", "TRACT\n8>2>1"],
        "2 steps": ["teacher\n8 steps", "teacher", "TRACT\n8>2"],
        "4 steps": ["teacher\n8 steps", "teacher"],
    }
    places = [
        ("1 step", "teacher\n8 steps", experiment.folder / "teacher", 8),
        ("4 steps", "teacher", experiment.folder / "teacher", 4),
        ("2 steps", "TRACT\n8>2", student / "phase-1.safetensors", 2),
        ("1 step", "TRACT\n8>2>1", student, 1),
    ]
    for steps, name, path, nfe in places:
        model = load_model(path)[0]
        expected = sample(
            lambda *a, model=model: model(*a).clamp(-1, 1),
            experiment.noise[0][:8],
            experiment.levels,
            nfe,
        )
        shown = explorer.landed[steps][name]
        torch.testing.assert_close(shown, expected, rtol=0, atol=1 / 127)  # to pixels


def test_the_teachers_walk_is_shown_from_noise_to_data_with_its_guesses(experiment):
    explorer = NoiseExplorer(experiment)
    assert list(explorer.noisy) == [f"t = {t}" for t in range(8, -1, -1)] == list(explorer.guessed)
    torch.testing.assert_close(explorer.noisy["t = 8"], experiment.noise[0][:8])
    teacher, levels = load_model(experiment.folder / "teacher")[0], experiment.levels
    guess = teacher(levels[8].sigma.float() * experiment.noise[0][:8], levels[8]).clamp(-1, 1)
    torch.testing.assert_close(explorer.guessed["t = 8"], guess)
    torch.testing.assert_close(
        explorer.guessed["t = 0"], explorer.noisy["t = 0"], atol=1e-3, rtol=0
    )


def test_another_noise_is_another_picture_and_what_is_damaged_is_said(experiment):
    explorer = NoiseExplorer(experiment)
    assert explorer.problems == []
    first = explorer.picture.value
    explorer.noise.value = 7
    assert explorer.picture.value != first
    explorer.noise.value = 0
    assert explorer.picture.value == first
    phase = next(experiment.folder.glob("TRACT-*/phase-1.safetensors"))
    content = phase.read_bytes()
    phase.write_bytes(b"nothing")
    damaged = NoiseExplorer(experiment)
    phase.write_bytes(content)
    assert "2 steps" in damaged.problems[0]
    assert "phase-1.safetensors is damaged" in damaged.problems[0]
    assert "TRACT\n8>2>1" in damaged.landed["1 step"]
