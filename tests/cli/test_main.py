"""The command: arguments to calls, errors to one line, exit statuses."""

import io
import json
import math
import signal
import sys
import time

import pandas as pd
import pytest
from helpers import write_notebook

from tract.base.compute import Compute
from tract.cli.main import main
from tract.cli.output import Steady, print_rows
from tract.jobs import execute as execute_module
from tract.jobs.parameters import NOTEBOOKS
from tract.jobs.sweep import Outcome
from tract.networks.named import NETWORKS, named_network
from tract.settings import Distillation, Training

DECLARED = """run_dir = ""
data_dir = ""
figure = ""
teacher = ""
data = "digits"
images = 1
batch_size = 1
rate = 0.1
learning_rate = 0.1
clamp = False
schedule = [2, 1]
seed = 0"""


@pytest.fixture
def executed(monkeypatch):
    """Calls of `execute` that the command makes, instead of executing notebooks."""
    calls = []
    monkeypatch.setattr(execute_module, "execute", lambda *arguments: calls.append(arguments))
    return calls


def test_models_lists_every_network_with_its_size(capsys):
    assert main(["models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["name", "parameters", "gflop_per_image"]
    assert [line.split()[0] for line in lines] == list(NETWORKS)
    expected = ["cifar10", "60,004,099", "35.79", "x0", "32", "3", "0"]
    assert lines[list(NETWORKS).index("cifar10")].split() == expected


def test_models_for_machines_are_an_object_a_line(capsys):
    assert main(["models", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["name"] for row in rows] == list(NETWORKS)
    row = rows[list(NETWORKS).index("imagenet64")]
    assert (row["parameters"], row["classes"], row["prediction"]) == (295_905_222, 1000, "x0_eps")
    assert row["gflop_per_image"] == 219.35757312


ROWS = [
    {"name": "a", "count": 60_004_099, "value": 1.8e19, "kind": 3},
    {"name": "long", "count": None, "value": math.nan, "kind": "x"},
    {"name": "b", "count": 7, "value": 0.12345678, "kind": True},
]


def test_a_table_has_numbers_to_the_right_and_blanks_for_what_is_not_there(capsys):
    print_rows(ROWS, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "name       count    value  kind",
        "a     60,004,099  1.8e+19  3",
        "long                       x",
        "b              7   0.1235  True",
    ]


def test_rows_for_machines_are_whole_and_know_no_nan(capsys):
    print_rows(ROWS, as_json=True)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        ROWS[0],
        ROWS[1] | {"value": None},
        ROWS[2],
    ]


def test_no_rows_print_nothing(capsys):
    print_rows([], as_json=False)
    print_rows([], as_json=True)
    assert capsys.readouterr().out == ""


def test_what_is_said_on_the_way_leaves_stdout_to_the_rows(monkeypatch, capsys):
    def quickstart():
        print("a bar")
        return pd.DataFrame(
            {"method": ["teacher", "BTD"], "schedule": [None, "8>1"], "nfe": [1, 2]}
        )

    monkeypatch.setattr("tract.jobs.quickstart.quickstart", quickstart)
    assert main(["quickstart", "--json"]) == 0
    output, errors = capsys.readouterr()
    assert [json.loads(line) for line in output.splitlines()] == [
        {"method": "teacher", "schedule": None, "nfe": 1},
        {"method": "BTD", "schedule": "8>1", "nfe": 2},
    ]
    assert errors == "a bar\n"


@pytest.fixture
def estimated(monkeypatch):
    """Arguments of estimates that the command asks for; each is the same."""
    calls = []

    def estimate(*arguments):
        calls.append(arguments)
        row = {"run": "TRACT 8>1", "images": 100, "steps": 10, "flop": 12e9, "seconds": 3.5}
        return row | {"memory_gb": 4.0, "tried_batch": 8, "device": "cpu"}

    monkeypatch.setattr("tract.jobs.cost.estimate", estimate)
    return calls


def test_cost_is_by_default_of_the_papers_main_run(estimated, capsys):
    assert main(["cost", "--json"]) == 0
    ((config, settings, noise_schedule, compute),) = estimated
    assert (config, noise_schedule, compute) == (named_network("cifar10"), "cosine", Compute())
    assert (settings.method, settings.step_schedule) == ("TRACT", (1024, 32, 1))
    assert (settings.train_images, settings.batch_size) == (96_000_000, 256)
    (row,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert row.pop("device") in ("cpu", "cuda")
    numbers = {"images": 100, "steps": 10, "flop": 1.2e10, "seconds": 3.5, "memory_gb": 4.0}
    assert row == {"run": "TRACT 8>1", **numbers, "tried_batch": 8}


def test_cost_is_of_what_is_asked_for(estimated):
    common = ["--network", "digits", "--train-images", "640", "--batch-size", "8"]
    common += ["--noise-schedule", "karras"]
    distilled = ["--method", "BTD", "--step-schedule", "[4, 2, 1]", "--solver", "heun"]
    distilled += ["--compute", "bf16+channels_last"]
    assert main(["cost", *common, *distilled]) == 0
    assert main(["cost", *common, "--method", "teacher"]) == 0
    (_, btd, noise_schedule, compute), (_, teacher, _, _) = estimated
    assert (noise_schedule, compute) == ("karras", Compute(precision="bf16", channels_last=True))
    expected = Distillation(
        method="BTD", step_schedule=[4, 2, 1], solver="heun", train_images=640, batch_size=8
    )
    assert (btd, teacher) == (expected, Training(train_images=640, batch_size=8))


def test_cost_of_an_impossible_run_is_one_line(estimated, capsys):
    assert main(["cost", "--step-schedule", "[1024, 3]"]) == 1
    assert "tract: step_schedule is [1024, 3]: 3 does not divide" in capsys.readouterr().err
    assert estimated == []


@pytest.fixture
def swept(monkeypatch):
    """Arguments of sweeps, of which one execution fails."""
    calls = []

    def sweep(*arguments, **options):
        calls.append((arguments, options))
        return [Outcome("seed=0", "done", 2.5), Outcome("seed=1", "failed", 1.0, "bad seed")]

    monkeypatch.setattr("tract.jobs.sweep.sweep", sweep)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return calls


def test_a_sweep_takes_grids_and_reports_failures_at_its_end(swept, tmp_path, capsys):
    file, notebook = tmp_path / "p.yaml", write_notebook(tmp_path / "n.ipynb", DECLARED)
    file.write_text("images: 10\nbatch_size: 2\n")
    grids = ["-g", "seed", "[0, 1]", "-g", "rate", "[1e-3]"]
    options = ["-f", str(file), "-p", "images", "20", *grids, "--workers", "2"]
    assert main(["sweep", str(notebook), "out", *options]) == 1
    ((arguments, given),) = swept
    assert [str(path) for path in arguments[:2]] == [str(notebook), "out"]
    assert arguments[2:] == (
        {"images": 20, "batch_size": 2},
        {"seed": [0, 1], "rate": [1e-3]},
    )
    assert given == {"workers": 2, "scheduler": None, "gpus": False}
    output, errors = capsys.readouterr()
    assert output.splitlines() == [
        f"{notebook}: images = 20, batch_size = 2",
        "name    state   seconds",
        "seed=0  done        2.5",
        "seed=1  failed        1",
    ]
    assert errors == "tract: 1 of 2 not done; seed=1: bad seed\n"


def test_two_grids_of_one_parameter_are_refused(swept, capsys):
    assert main(["sweep", "n", "out", "-g", "seed", "[0]", "-g", "seed", "[1]"]) == 1
    assert "a parameter has two grids: give all its values in one" in capsys.readouterr().err
    assert swept == []


def test_parameters_come_from_the_file_and_the_command_line_wins(executed, tmp_path):
    file, notebook = tmp_path / "p.yaml", write_notebook(tmp_path / "n.ipynb", DECLARED)
    file.write_text("images: 10\nschedule: [8, 1]\nclamp: true\n")
    options = ["-f", str(file), "-p", "images", "20", "-p", "learning_rate", "0.001"]
    assert main(["run", str(notebook), "out.ipynb", *options]) == 0
    ((executed_notebook, output, parameters),) = executed
    assert (executed_notebook, str(output)) == (notebook, "out.ipynb")
    assert parameters == {"images": 20, "schedule": [8, 1], "clamp": True, "learning_rate": 0.001}


def test_numbers_may_be_written_as_in_python(executed, tmp_path):
    file, notebook = tmp_path / "p.yaml", write_notebook(tmp_path / "n.ipynb", DECLARED)
    file.write_text("learning_rate: 1e-3\n")
    typed = ["-p", "rate", "2e-4", "-p", "images", "96e6", "-p", "batch_size", "010"]
    assert main(["run", str(notebook), "o", "-f", str(file), *typed]) == 0
    expected = {"learning_rate": 1e-3, "rate": 2e-4, "images": 96_000_000, "batch_size": 10}
    assert executed[0][2] == expected
    assert [type(value) for value in executed[0][2].values()] == [float, float, int, int]


@pytest.mark.parametrize("text", ["", "/data/set #2", "~", "no", "1:30", "'quoted'", "[a", "010"])
def test_a_text_is_what_was_typed(executed, tmp_path, text):
    notebook = write_notebook(tmp_path / "n.ipynb", DECLARED)
    assert main(["run", str(notebook), "o", "-p", "data", text]) == 0
    assert executed[0][2] == {"data": text}


@pytest.mark.parametrize("value", ["1:30", "no", "~", "1_0x", "*a", "0x10"])
def test_a_number_that_is_none_is_refused_as_it_was_typed(executed, tmp_path, capsys, value):
    notebook = write_notebook(tmp_path / "n.ipynb", DECLARED)
    assert main(["run", str(notebook), "o", "-p", "images", value]) == 1
    error = capsys.readouterr().err
    assert "parameter images is" in error
    assert len(error.splitlines()) == 1
    assert executed == []


def test_paths_are_seen_from_the_current_folder(executed, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    notebook = write_notebook(tmp_path / "n.ipynb", DECLARED)
    typed = {"run_dir": "runs/a", "data_dir": "~/data", "figure": "../f", "teacher": ""}
    options = [part for pair in typed.items() for part in ("-p", *pair)]
    assert main(["run", str(notebook), "o", *options]) == 0
    seen = {"run_dir": "here/runs/a", "data_dir": "home/data", "figure": "f"}
    expected = {name: f"{tmp_path}/{path}" for name, path in seen.items()}
    assert executed[0][2] == expected | {"teacher": ""}
    assert f"run_dir = '{tmp_path}/here/runs/a'" in capsys.readouterr().out  # said
    for teacher, meant in [
        ("google/ddpm-cifar10-32", "google/ddpm-cifar10-32"),  # of the hub
        ("data/t.safetensors", f"{tmp_path}/here/data/t.safetensors"),
        ("~/t.pkl", f"{tmp_path}/home/t.pkl"),
    ]:
        main(["run", str(notebook), "o", "-p", "teacher", teacher])
        assert executed[-1][2] == {"teacher": meant}


YAML = {
    "references": "seed: [&a [x, x], [*a, *a]]\n",
    "depth": "seed: " + "[" * 3000 + "\n",
    "a name that is no text": "1: 2\n",
    "a name given twice": "images: 1\nimages: 2\n",
    "many digits": f"images: {'9' * 5000}\n",
}


@pytest.mark.parametrize("content", YAML.values(), ids=YAML)
def test_odd_yaml_is_refused_in_one_line(executed, tmp_path, capsys, content):
    file, notebook = tmp_path / "p.yaml", write_notebook(tmp_path / "n.ipynb", DECLARED)
    file.write_text(content)
    assert main(["run", str(notebook), "o", "-f", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tract: ")
    assert str(file) in error
    assert len(error.splitlines()) == 1
    assert executed == []


class Gone(io.StringIO):
    """A pipe whose reader has gone after the first line."""

    def flush(self):
        if self.getvalue().count("\n") > 1:
            raise BrokenPipeError(32, "Broken pipe")


def test_output_that_nobody_reads_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["models"]) == 0
    assert capsys.readouterr().err == ""


def test_a_redirected_bar_is_a_line_every_few_seconds(monkeypatch):
    now = iter(range(10**6))  # of a clock: a second for each look at it
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    stream = io.StringIO()
    steady = Steady(stream)
    for i in range(200):
        steady.write(f"\rrun: {i} of 200")
    steady.write("\nend")
    steady.close()
    *bar, last, end = stream.getvalue().splitlines()
    assert (last, end) == ("run: 199 of 200", "end")
    assert 2 < len(bar) < 50
    assert "\r" not in stream.getvalue()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "tract: out of memory: use a smaller batch"),
        (KeyError("x"), "tract: KeyError: 'x'"),
        (RuntimeError("one\n  two"), "tract: one two"),
    ],
)
def test_no_traceback_reaches_a_user(monkeypatch, capsys, error, said):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(execute_module, "execute", fail)
    assert main(["run", "--in-place", "a.ipynb"]) == 1
    assert capsys.readouterr().err.startswith(said)


def test_run_executes_several_notebooks_in_place(executed, capsys):
    assert main(["run", "--in-place", "a.ipynb", "b.ipynb"]) == 0
    assert [(str(a), str(b)) for a, b, _ in executed] == [("a.ipynb",) * 2, ("b.ipynb",) * 2]
    for odd in (["a.ipynb"], [], ["a.ipynb", "b.ipynb", "--in-place", "c.ipynb"]):
        assert main(["run", *odd]) == 1
        assert "give NOTEBOOK and OUTPUT, or --in-place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "p.yaml"),
        ("- a\n- b\n", "p.yaml is not a list of `name: value`"),
        ("a: [1", "p.yaml is not YAML"),
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
    assert (
        error
        == f"tract: no notebook {tmp_path}/no.ipynb: correct the path; tract's are in "
        + f"{NOTEBOOKS}\n"
    )


def test_a_stop_is_status_130(monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute_module, "execute", stopped)
    assert main(["run", "--in-place", "a.ipynb"]) == 130
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
