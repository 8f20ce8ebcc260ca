"""Parameters of a notebook become settings."""

from tract.jobs.parameters import NOTEBOOKS, as_committed, declared_parameters, from_parameters
from tract.settings import Distillation, Training


def test_a_notebook_knows_whether_its_parameters_are_the_committed_ones():
    committed = declared_parameters(NOTEBOOKS / "02_btd.ipynb")
    assert as_committed(committed | {"threads": 7, "other": 1}, "02_btd")  # elsewhere computed
    assert not as_committed(committed | {"seed": 1}, "02_btd")
    assert not as_committed(committed, "no such notebook")


def test_settings_take_the_parameters_of_their_names_and_what_is_given_besides():
    parameters = {"train_images": 64, "batch_size": 16, "seed": 2, "run_dir": "runs"}
    assert from_parameters(Training, parameters) == Training(train_images=64, batch_size=16, seed=2)
    changed = from_parameters(Distillation, parameters, step_schedule=[8, 1], seed=3)
    assert (changed.schedule, changed.batch_size, changed.seed) == ("8>1", 16, 3)
