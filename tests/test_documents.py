"""What people read first keeps working: committed notebooks, their presets, the README's code."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from tract.data import load_data
from tract.distill import Distillation
from tract.execute import check_parameters, declared_parameters
from tract.presets import build_denoiser, preset
from tract.state import save_model

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRESETS = sorted((ROOT / "notebooks" / "presets").glob("*.yaml"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_executed_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    assert cells[-1].outputs[-1].text == "all checks passed\n"
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_of_a_notebook_has_its_help(path):
    source = next(
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if "parameters" in cell.metadata.get("tags", [])
    )
    assert [line for line in source.splitlines() if "  # help: " not in line] == []


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_names_parameters_of_its_notebook(path):
    (notebook,) = (ROOT / "notebooks").glob(f"0?_{path.stem.rsplit('_', 1)[1]}.ipynb")
    parameters = yaml.safe_load(path.read_text())
    check_parameters(declared_parameters(notebook), parameters)
    for schedule in parameters.get("step_schedules", []):
        settings = {n: parameters[n] for n in ("images", "batch", "learning_rate")}
        assert Distillation(step_schedule=schedule, **settings).steps_per_phase > 1000


def test_the_code_in_the_readme_distils_a_teacher(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    teacher = tmp_path / "runs" / "quickstart" / "teacher"
    teacher.mkdir(parents=True)
    save_model(teacher / "model.safetensors", build_denoiser(preset("digits")), {})
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("images=51200", "images=256"), names)
    assert "1024>32 step 1 of 2" in capsys.readouterr().out
    assert names["student"].config == preset("digits")
    assert names["data"].shape == load_data("digits").shape
