"""Parameters of a notebook become settings."""

from tract.jobs.parameters import from_parameters, given_parameters
from tract.settings import Distillation, Training

CELL = "# Training\ntrain_images = 64  # help: images\nseed = 1  # help: of noise\n"


def test_papermills_values_follow_the_notebooks_own():
    cells = ["", CELL, "# Parameters\nseed = 2\n", "seed = 3", "loss = 0.5"]
    assert given_parameters(cells) == {"train_images": 64, "seed": 2}


def test_settings_take_the_parameters_of_their_names_and_what_is_given_besides():
    parameters = {"train_images": 64, "batch_size": 16, "seed": 2, "run_dir": "runs"}
    assert from_parameters(Training, parameters) == Training(train_images=64, batch_size=16, seed=2)
    changed = from_parameters(Distillation, parameters, step_schedule=[8, 1], seed=3)
    assert (changed.schedule, changed.batch_size, changed.seed) == ("8>1", 16, 3)
