"""The examples of tract/README.md, executed: one file, or one entry, is enough to extend it."""

import re
from pathlib import Path

import ipywidgets
import pytest
import torch
from helpers import write_notebook

import tract
from tract.cli.main import main
from tract.data import Data
from tract.datasets.load import LOADERS, load_data
from tract.distill import distill, start_distillation
from tract.lab.explorer import ScheduleExplorer
from tract.levels import cosine
from tract.methods import METHODS
from tract.metrics.features import FEATURES, extractor
from tract.metrics.fid import compare
from tract.networks.build import build_denoiser, named_network
from tract.oracle import Gaussian
from tract.settings import Distillation
from tract.teachers.load import FILE_FORMATS, load_teacher

TEXT = (Path(tract.__file__).parent / "README.md").read_text()
EXAMPLES = dict(
    re.findall(
        r"^## To add a ([\w' ]+), touch.*?```python\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL
    )
)
GAUSSIAN = Gaussian(torch.zeros(2), torch.eye(2))


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The tables that the examples add to, as they were afterwards."""
    for table in (METHODS, LOADERS, FEATURES):
        for name in list(table):
            monkeypatch.setitem(table, name, table[name])
    known = list(FILE_FORMATS)
    yield
    FILE_FORMATS[:] = known
    for table, name in ((METHODS, "half"), (LOADERS, "stripes"), (FEATURES, "rows")):
        table.pop(name, None)


def test_examples_are_short():
    assert {"method", "teacher's format", "data set", "metric"} == EXAMPLES.keys()
    assert max(len(code.splitlines()) for code in EXAMPLES.values()) <= 12


def test_a_method_is_one_entry(tmp_path):
    exec(EXAMPLES["method"], {})
    settings = Distillation(
        train_images=64, batch_size=16, step_schedule=[8, 1], method="half", clamp="none"
    )
    points = Data("points", torch.randn(64, 2))
    options = {"point_dim": 2, "channels": 8, "num_blocks": 1}
    config = {"net": "mlp", "prediction": "v", "sigma_data": 1.0, "options": options}
    state = start_distillation(GAUSSIAN, settings, build_denoiser(config))
    assert len(list(distill(state, points, cosine(8), settings))) == 4
    eps = torch.randn(8, 2)
    explorer = ScheduleExplorer(GAUSSIAN, cosine(8), eps, eps)
    assert isinstance(explorer.method, ipywidgets.ToggleButtons)
    assert "half" in explorer.method.options
    notebook = write_notebook(
        tmp_path / "n.ipynb",
        "method = 'TRACT'",
        EXAMPLES["method"],
        "from tract.settings import Distillation\n"
        "print(Distillation(train_images=64, batch_size=16, step_schedule=[8, 1], method=method))",
    )
    output = tmp_path / "out.ipynb"
    assert main(["run", str(notebook), str(output), "-p", "method", "half"]) == 0
    assert "method='half'" in output.read_text()


def test_a_teachers_format_is_one_entry(tmp_path, capsys):
    exec(EXAMPLES["teacher's format"], {})
    (tmp_path / "weights.mine").write_bytes(b"MINE" + bytes(16))
    teacher = load_teacher(tmp_path / "weights.mine")
    assert teacher.denoiser.config == named_network("digits")
    assert "a network of mine" in capsys.readouterr().out


def test_a_data_set_is_one_entry():
    exec(EXAMPLES["data set"], {})
    data = load_data("stripes")
    assert data.shape == (1, 8, 8)
    assert len(data.samples.unique()) == 4


def test_a_metric_is_one_entry(tmp_path):
    exec(EXAMPLES["metric"], {})
    assert extractor("rows")(torch.zeros(3, 1, 8, 8).byte()).shape == (3, 8)
    (row,) = compare("digits", "digits", features="rows", samples=100, cache=tmp_path)
    assert row["metric"] == "fd_rows"
