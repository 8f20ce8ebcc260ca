"""Parameters of a notebook become settings."""

import pytest

from tract.ema import decay_from_residual
from tract.jobs.parameters import (
    NOTEBOOKS,
    RENAMED,
    as_committed,
    check_parameters,
    declared_parameters,
    from_parameters,
)
from tract.settings import Distillation, Training


def test_a_notebook_knows_whether_its_parameters_are_the_committed_ones():
    committed = declared_parameters(NOTEBOOKS / "02_btd.ipynb")
    assert as_committed(committed | {"threads": 7, "other": 1}, "02_btd")  # elsewhere computed
    assert not as_committed(committed | {"seed": 1}, "02_btd")
    assert not as_committed(committed, "no such notebook")


OLD = [("04_edm_ve", ["process", "hops", "preset"]), ("05_ablations", ["ablations", "batch"])]


@pytest.mark.parametrize(("notebook", "names"), OLD)
def test_an_old_name_is_refused_with_the_new_one(notebook, names):
    declared = declared_parameters(NOTEBOOKS / f"{notebook}.ipynb")
    for name in names:
        with pytest.raises(ValueError, match=f"'{name}': did you mean '{RENAMED[name]}'"):
            check_parameters(declared, {name: 1})


def test_settings_take_the_parameters_of_their_names_and_what_is_given_besides():
    parameters = {"train_images": 64, "batch_size": 16, "seed": 2, "run_dir": "runs"}
    assert from_parameters(Training, parameters) == Training(train_images=64, batch_size=16, seed=2)
    changed = from_parameters(Distillation, parameters, step_schedule=[8, 1], seed=3)
    assert (changed.schedule, changed.batch_size, changed.seed) == ("8>1", 16, 3)


def test_the_average_is_said_by_its_decay_or_by_its_residual():
    parameters = {"train_images": 640, "batch_size": 16, "ema_residual": 0.2, "ema_decay": 0.0}
    parameters["step_schedule"] = [16, 4, 1]
    assert from_parameters(Distillation, parameters).ema_residual == 0.2
    settings = from_parameters(Distillation, parameters | {"ema_decay": 0.9})
    assert decay_from_residual(settings.ema_residual, 20) == pytest.approx(0.9, rel=1e-12)
    with pytest.raises(ValueError, match="ema_decay is 1.5: use a share between 0 and 1"):
        from_parameters(Distillation, parameters | {"ema_decay": 1.5})
    with pytest.raises(ValueError, match="1e-30: use one nearer to 1 for 20 steps"):
        from_parameters(Distillation, parameters | {"ema_decay": 1e-30})
