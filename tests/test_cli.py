"""The command: arguments to calls, errors to one line, exit statuses."""

import pytest
from helpers import write_notebook

from tract import execute as execute_module
from tract.cli import main
from tract.presets import PRESETS


@pytest.fixture
def executed(monkeypatch):
    """Calls of `execute` that the command makes, instead of executing notebooks."""
    calls = []
    monkeypatch.setattr(execute_module, "execute", lambda *arguments: calls.append(arguments))
    return calls


def test_models_lists_every_preset_with_its_size(capsys):
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PRESETS)
    assert "60,004,099 parameters" in lines[list(PRESETS).index("cifar10")]


def test_parameters_come_from_the_file_and_the_command_line_wins(executed, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("images: 10\nschedule: [8, 1]\nclamp: true\n")
    options = ["-f", str(file), "-p", "images", "20", "-p", "learning_rate", "0.001"]
    assert main(["run", "n.ipynb", "out.ipynb", *options]) == 0
    ((notebook, output, parameters),) = executed
    assert (str(notebook), str(output)) == ("n.ipynb", "out.ipynb")
    assert parameters == {"images": 20, "schedule": [8, 1], "clamp": True, "learning_rate": 0.001}


def test_numbers_may_be_written_as_in_python(executed, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text("learning_rate: 1e-3\n")
    assert main(["run", "n", "o", "-f", str(file), "-p", "ema_residual", "2e-4"]) == 0
    assert executed[0][2] == {"learning_rate": 1e-3, "ema_residual": 2e-4}


def test_execute_runs_every_notebook_in_place(executed):
    assert main(["execute", "a.ipynb", "b.ipynb"]) == 0
    assert [(str(a), str(b)) for a, b in executed] == [("a.ipynb",) * 2, ("b.ipynb",) * 2]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "p.yaml"),
        ("- a\n- b\n", "p.yaml is no list of `name: value`"),
        ("a: [1", "p.yaml is no YAML"),
    ],
)
def test_a_file_without_parameters_is_refused_in_one_line(
    executed, tmp_path, capsys, content, problem
):
    file = tmp_path / "p.yaml"
    if content is not None:
        file.write_text(content)
    assert main(["run", "n", "o", "-f", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tract: ")
    assert problem in error
    assert executed == []


def test_a_missing_notebook_is_one_line_and_status_1(capsys, tmp_path):
    assert main(["run", str(tmp_path / "no.ipynb"), "out.ipynb"]) == 1
    error = capsys.readouterr().err
    assert error == f"tract: no notebook {tmp_path}/no.ipynb: correct the path\n"


def test_a_stop_is_status_130(monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute_module, "execute", stopped)
    assert main(["execute", "a.ipynb"]) == 130
    assert "stopped" in capsys.readouterr().err


def test_wrong_usage_is_status_2(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["distil"])
    assert exit.value.code == 2
    assert "distil" in capsys.readouterr().err


def test_a_failing_cell_is_status_1_and_says_why(tmp_path, capsys):
    path = write_notebook(tmp_path / "n.ipynb", "images = 1", "raise ValueError('use 4')")
    output = tmp_path / "out.ipynb"
    assert main(["run", str(path), str(output)]) == 1
    line = f"tract: {path} failed in cell 2 with ValueError: use 4; the traceback is in {output}\n"
    assert capsys.readouterr().err.endswith(line)  # the kernel may warn before
    assert "raise ValueError" in output.read_text()
