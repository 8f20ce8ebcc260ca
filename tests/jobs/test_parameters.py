"""Parameters of a notebook become settings."""

from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from tract.ema import decay_from_residual
from tract.experiments.experiment import run_name
from tract.jobs.parameters import (
    NOTEBOOKS,
    RENAMED,
    as_committed,
    check_claims,
    check_parameters,
    declared_parameters,
    from_parameters,
)
from tract.metrics.features import metric_name
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


def of_01(changes):
    """Names of notebook 01 before its last cell, where nothing was learned."""
    steps = [32, 16, 8]
    table = pd.DataFrame({"nfe": steps, "fd_pixels": 10.0 - np.arange(3)})
    losses = pd.DataFrame({"loss": np.ones(100)})
    return {"table": table, "history": lambda folder: losses, "TEACHER": "teacher"}


def of_03(changes):
    """Names of notebook 03 before its last cell, where students are no better than the teacher."""
    schedules = changes.get("step_schedules", [[1024, 32, 1], [1024, 1]])
    recipes = [Distillation(step_schedule=s, train_images=1280) for s in schedules]
    ends = [schedule[-1] for schedule in schedules]
    rows = [("teacher", ends[0], 1.0), *((run_name(s), ends[0], 1.0) for s in recipes)]
    table = pd.DataFrame(rows, columns=["run", "nfe", "fd_pixels"])
    names = {"recipes": recipes, "ends": ends, "table": table, "run_name": run_name}
    about = SimpleNamespace(teacher_steps=1024, unchanged=True)
    return names | {"TEACHER": "teacher", "experiment": about, "trainings": about}


@pytest.mark.parametrize(
    ("notebook", "names", "changes"),
    [
        ("01_teacher", of_01, {"sample_steps": [16, 8]}),
        ("03_tract", of_03, {"train_images": 1280}),
        ("03_tract", of_03, {"step_schedules": [[1024, 8]]}),
    ],
)
def test_a_notebook_asserts_what_holds_at_its_committed_parameters_alone(
    notebook, names, changes, capsys
):
    path = NOTEBOOKS / f"{notebook}.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    (last,) = (cell.source for cell in cells if "check_claims(" in cell.source)
    committed = declared_parameters(path)
    given = {"as_committed": as_committed, "check_claims": check_claims, "metric_name": metric_name}
    given |= {"features": ["pixels"], "run_dir": "", **names(changes)}
    exec(last, given | {"parameters": committed | changes})
    assert "does not hold" in capsys.readouterr().out
    if "step_schedules" not in changes:
        with pytest.raises(AssertionError):
            exec(last, given | {"parameters": committed})


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
    with pytest.raises(ValueError, match="1e-30: use a value closer to 1 for 20 steps"):
        from_parameters(Distillation, parameters | {"ema_decay": 1e-30})
