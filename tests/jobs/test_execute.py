"""Notebook parameters: what is declared, what is refused before a kernel starts, what runs."""

import os
import signal

import nbformat
import papermill
import pytest
from helpers import write_notebook
from nbformat import v4

from tract.jobs.execute import execute, strip_for_commit
from tract.jobs.parameters import check_parameters, declared_parameters, refuse_unknown_parameters

PARAMETERS = """run_dir = "runs"  # help: where it goes
images = 1000  # help: how many
learning_rate = 1e-3
clamp = True
schedule = [8, 4, 1]
seed = -1"""
DECLARED = {
    "run_dir": "runs",
    "images": 1000,
    "learning_rate": 1e-3,
    "clamp": True,
    "schedule": [8, 4, 1],
    "seed": -1,
}


def test_parameters_are_declared_by_the_cell_tagged_so(tmp_path):
    path = write_notebook(tmp_path / "n.ipynb", PARAMETERS, "images = 5")
    assert declared_parameters(path) == DECLARED


def test_a_notebook_without_that_cell_is_refused_with_its_path(tmp_path):
    path = tmp_path / "n.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("images = 1")]), path)
    with pytest.raises(ValueError, match=f"{path} has no cell tagged 'parameters'"):
        declared_parameters(path)


UNKNOWN = [
    ({"image": 5}, "unknown parameter 'image': did you mean 'images'?"),
    ({"xyzzy": 5}, r"unknown parameter 'xyzzy': choose from \['run_dir', 'images'"),
]
WRONG = [
    ({"images": "many"}, "parameter images is 'many': give a number, as the default 1000 is"),
    ({"images": True}, "parameter images is True: give a number"),
    ({"images": None}, "parameter images is None: give a number"),
    ({"clamp": 1}, "parameter clamp is 1: give a true or false"),
    ({"run_dir": 5}, "parameter run_dir is 5: give a text"),
    ({"schedule": 8}, "parameter schedule is 8: give a list"),
]


@pytest.mark.parametrize(("given", "message"), UNKNOWN + WRONG)
def test_a_parameter_that_cannot_be_is_refused_with_what_can(given, message):
    with pytest.raises(ValueError, match=message):
        check_parameters(DECLARED, given)


def test_parameters_of_the_declared_kinds_are_accepted():
    check_parameters(DECLARED, {"images": 5, "learning_rate": 1, "schedule": [], "clamp": False})
    check_parameters(DECLARED, {})


@pytest.mark.parametrize(("given", "message"), UNKNOWN[:1] + WRONG[:1])
def test_they_are_refused_before_a_kernel_starts(tmp_path, monkeypatch, given, message):
    monkeypatch.setattr(papermill, "execute_notebook", None)  # would fail if it were called
    path = write_notebook(tmp_path / "n.ipynb", PARAMETERS)
    with pytest.raises(ValueError, match=message):
        execute(path, tmp_path / "out" / "n.ipynb", given)
    assert not (tmp_path / "out").exists()


def test_a_missing_notebook_is_refused_with_its_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no notebook {tmp_path}/no.ipynb: correct"):
        execute(tmp_path / "no.ipynb", tmp_path / "out.ipynb")


# What papermill injects, and then IPython keeps, as text.
INJECTED = "# Parameters\nimage = 5\n"


def test_an_unknown_parameter_that_papermill_injected_is_refused():
    with pytest.raises(ValueError, match="unknown parameter 'image': did you mean 'images'"):
        refuse_unknown_parameters(["", PARAMETERS, INJECTED, "refuse_unknown_parameters(In)"])


def test_a_declared_parameter_that_papermill_injected_is_accepted():
    refuse_unknown_parameters(["", PARAMETERS, INJECTED.replace("image", "images"), "import x"])


def test_a_notebook_without_injected_parameters_is_accepted():
    refuse_unknown_parameters(["", PARAMETERS, "x = f()"])


def test_an_executed_notebook_can_be_executed_again_in_its_kernel():
    cells = [PARAMETERS, INJECTED.replace("image", "images"), "%matplotlib inline", "x = f(images)"]
    refuse_unknown_parameters(["", *cells, *cells])
    with pytest.raises(ValueError, match="unknown parameter 'image'"):
        refuse_unknown_parameters(["", *cells, PARAMETERS, INJECTED])


def test_of_a_progress_bar_nothing_is_kept(tmp_path):
    path = tmp_path / "n.ipynb"
    bar = "start\nrun:   0%|\rrun:  50%|\rrun: 100%|\nend\n\x1b[A"
    outputs = [
        v4.new_output("stream", text=bar),
        v4.new_output("display_data", {"text/plain": "x"}),
    ]
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("", outputs=outputs)]), path)
    strip_for_commit(path)
    kept = nbformat.read(path, as_version=4).cells[0].outputs
    assert kept[0].text == "start\nend\n"
    assert kept[1].data == {"text/plain": "x"}


def test_of_a_widget_its_picture_is_kept(tmp_path):
    source = """from ipywidgets import IntSlider
from tract.lab.plots import new_figure
from tract.lab.show import show
handle = show(IntSlider(3), new_figure(1, 1, (2, 1))[0])"""
    path, out = write_notebook(tmp_path / "n.ipynb", "images = 1", source), tmp_path / "out.ipynb"
    execute(path, out, shown=False)
    first = out.read_text()
    (output,) = nbformat.reads(first, as_version=4).cells[-1].outputs
    assert output.data.keys() == {"image/png", "text/plain"}
    assert output.data["text/plain"] == "<IntSlider>"
    assert "widgets" not in nbformat.reads(first, as_version=4).metadata
    execute(path, out, shown=False)
    again = nbformat.read(out, as_version=4).cells[-1].outputs
    assert again == [output]


def test_a_signal_between_two_executions_does_not_reach_the_second(tmp_path):
    path, out = write_notebook(tmp_path / "n.ipynb", "a = 1", "print(a)"), tmp_path / "out.ipynb"
    execute(path, out, shown=False)
    signals = []
    before = signal.signal(signal.SIGINT, lambda *_: signals.append(1))
    try:
        signal.raise_signal(signal.SIGINT)
        execute(path, out, shown=False)
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert signals == [1, 1]


def test_a_notebook_runs_in_its_folder_with_its_parameters_and_shows_what_it_prints(
    tmp_path, capsys
):
    source = """from pathlib import Path
from tract.jobs.parameters import refuse_unknown_parameters
refuse_unknown_parameters(In)
print("half\\rdone with", images, schedule, Path("here.txt").read_text())"""
    (tmp_path / "here.txt").write_text("here")
    path = write_notebook(tmp_path / "n.ipynb", PARAMETERS, source)
    before = path.read_bytes()
    execute(path, tmp_path / "deep" / "out.ipynb", {"images": 7})
    assert "done with 7 [8, 4, 1] here" in capsys.readouterr().out
    executed = nbformat.read(tmp_path / "deep" / "out.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "done with 7 [8, 4, 1] here\n"
    assert path.read_bytes() == before


def test_a_kernel_that_does_not_start_is_an_error_with_its_last_words(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif 'DIE' in os.environ: raise SystemExit"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    path = write_notebook(tmp_path / "n.ipynb", PARAMETERS)
    with pytest.raises(RuntimeError, match=f"(?s)executing {path}; its last output: .*SystemExit"):
        execute(path, tmp_path / "out.ipynb", shown=False, environment={"DIE": "1"})
