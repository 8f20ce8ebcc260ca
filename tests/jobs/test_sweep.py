"""Sweeps: what is executed, what is not repeated, what survives the death of a kernel."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import nbformat
import psutil
import pytest
from distributed import LocalCluster
from helpers import write_notebook

from tract.base.files import only_writer
from tract.jobs import sweep as module
from tract.jobs.sweep import is_finished, point_name, points_of, sweep

PARAMETERS = "seed = 0\nschedule = [8, 1]\npause = 0.0\nrun_dir = 'runs'"


@pytest.fixture
def notebook(tmp_path):
    return write_notebook(tmp_path / "n.ipynb", PARAMETERS, "print(seed)")


@pytest.fixture(scope="module")
def scheduler():
    """Address of a dask cluster in this process, which sees what a test replaces."""
    with LocalCluster(
        1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def executed(monkeypatch):
    """Parameters of all executions, of which none takes place; those of seed 3 fail."""
    calls = []

    def execute(notebook, output, parameters, *, shown, environment):
        calls.append(parameters)
        output.write_bytes(notebook.read_bytes())
        if parameters["seed"] == 3:
            raise RuntimeError("seed 3 is bad")

    monkeypatch.setattr(module, "execute", execute)
    return calls


def states(outcomes):
    return {outcome.name: outcome.state for outcome in outcomes}


def test_a_grid_is_every_combination_with_the_parameters_beside_it(notebook, tmp_path):
    grid = {"seed": [0, 1], "schedule": [[8, 4, 1], [8, 1], [2, 1]]}
    tasks = points_of(notebook, tmp_path / "out", {"pause": 2.5}, grid)
    assert [task.parameters for task in tasks] == [
        {"pause": 2.5, "seed": seed, "schedule": schedule}
        for seed in (0, 1)
        for schedule in ([8, 4, 1], [8, 1], [2, 1])
    ]
    assert [task.output for task in tasks][:2] == [
        tmp_path / "out" / "seed=0,schedule=8-4-1.ipynb",
        tmp_path / "out" / "seed=0,schedule=8-1.ipynb",
    ]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (3, "a=3"),
        (-1e-3, "a=-0.001"),
        (True, "a=True"),
        ("../runs/my run", "a=..-runs-my-run"),
        ([[1024, 32, 1], [1024, 1]], "a=1024-32-1+1024-1"),
    ],
)
def test_a_point_has_a_name_that_is_a_file_name(value, name):
    assert point_name({"a": value}) == name


@pytest.mark.parametrize(
    ("parameters", "grid", "message"),
    [
        ({}, {"sed": [0]}, "unknown parameter 'sed': did you mean 'seed'?"),
        ({"sed": 1}, {"seed": [0]}, "unknown parameter 'sed': did you mean 'seed'?"),
        ({}, {"seed": [0, "one"]}, "parameter seed is 'one': give a number"),
        ({}, {}, "a sweep needs a grid"),
        ({}, {"seed": 3}, r"grid of seed is 3: use a list, such as \[0, 1, 2\]"),
        ({}, {"seed": []}, r"grid of seed is \[\]"),
        ({"seed": 1}, {"seed": [0]}, "seed is a parameter and has a grid as well"),
        ({}, {"run_dir": ["a/b", "c", "a b"]}, "2 points of the grid are called run_dir=a-b"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_starts(
    notebook, tmp_path, parameters, grid, message
):
    with pytest.raises(ValueError, match=message):
        sweep(notebook, tmp_path / "out", parameters, grid, scheduler="is not asked")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"workers": 0}, ValueError, "workers is 0: use 1 or more"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, ValueError, "workers is 2, but a scheduler's"),
        ({"scheduler": "tcp//nowhere"}, OSError, "no dask scheduler at tcp//nowhere .*correct"),
    ],
)
def test_workers_that_cannot_be_are_refused(notebook, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        sweep(notebook, tmp_path / "out", {}, {"seed": [0]}, **options)


def test_gpus_that_are_not_there_are_refused_and_those_that_are_shared_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 12)
    given = module.environments(None, gpus=True)
    assert [e["CUDA_VISIBLE_DEVICES"] for e in given] == ["4", "7"]
    assert [e["OMP_NUM_THREADS"] for e in given] == ["6", "6"]
    assert [e["CUDA_VISIBLE_DEVICES"] for e in module.environments(1, gpus=True)] == ["4"]
    with pytest.raises(ValueError, match="3 executions need a GPU each, but there are 2 GPUs"):
        module.environments(3, gpus=True)


def test_cores_are_shared_out_unless_the_environment_says_how(monkeypatch):
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [e["OMP_NUM_THREADS"] for e in module.environments(None, gpus=False)] == ["1"] * 6
    assert [e["OMP_NUM_THREADS"] for e in module.environments(2, gpus=False)] == ["3"] * 2
    assert [e["OMP_NUM_THREADS"] for e in module.environments(9, gpus=False)] == ["1"] * 9
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert [e["OMP_NUM_THREADS"] for e in module.environments(2, gpus=False)] == ["5"] * 2


def test_a_rerun_executes_only_what_is_missing(notebook, tmp_path, executed, scheduler):
    out = tmp_path / "out"

    def seeds(*values, **parameters):
        executed.clear()
        outcomes = sweep(notebook, out, parameters, {"seed": list(values)}, scheduler=scheduler)
        return states(outcomes), sorted(call["seed"] for call in executed)

    assert seeds(0, 1) == ({"seed=0": "done", "seed=1": "done"}, [0, 1])
    assert seeds(0, 1, 2) == (
        {"seed=0": "skipped", "seed=1": "skipped", "seed=2": "done"},
        [2],
    )
    # What the notebook says by itself is no change.
    assert seeds(0, 1, 2, pause=0.0)[1] == []
    with pytest.raises(ValueError, match="other values of pause"):
        seeds(0, 1, 2, pause=0.5)
    assert executed == []
    (out / "seed=1.ipynb").unlink()
    half = (out / "seed=2.ipynb").read_bytes()
    (out / "seed=2.ipynb").write_bytes(half[: len(half) // 2])
    assert seeds(0, 1, 2)[1] == [1, 2]


def test_a_changed_source_is_executed_again_and_changed_outputs_are_not(
    notebook, tmp_path, executed, scheduler
):
    def times():
        executed.clear()
        sweep(notebook, tmp_path / "out", {}, {"seed": [0]}, scheduler=scheduler)
        return len(executed)

    assert times() == 1
    content = nbformat.read(notebook, as_version=4)
    content.cells[-1].outputs = [nbformat.v4.new_output("stream", text="0\n")]
    nbformat.write(content, notebook)
    assert times() == 0
    content.cells[-1].source += "  # more"
    nbformat.write(content, notebook)
    assert times() == 1


def test_the_results_of_another_sweep_are_not_replaced(notebook, tmp_path):
    out, grid = tmp_path / "out", {"seed": [0]}
    assert states(sweep(notebook, out, {"pause": 0.5}, grid, workers=1)) == {"seed=0": "done"}
    before = (out / "seed=0.ipynb").read_bytes()
    with pytest.raises(ValueError, match="other values of pause: choose another"):
        sweep(notebook, out, {"pause": 0.0}, grid, workers=1)
    with pytest.raises(ValueError, match="other values of pause"):
        sweep(notebook, out, {}, grid, workers=1)
    assert (out / "seed=0.ipynb").read_bytes() == before


def test_a_failure_is_named_and_stops_nothing(notebook, tmp_path, executed, scheduler):
    grid = {"seed": [3, 4, 5]}
    for again in ("done", "skipped"):
        outcomes = sweep(notebook, tmp_path / "out", {}, grid, scheduler=scheduler)
        assert states(outcomes) == {"seed=3": "failed", "seed=4": again, "seed=5": again}
        assert [outcome.error for outcome in outcomes] == ["seed 3 is bad", "", ""]
        assert outcomes[0].seconds is not None


def test_an_interrupted_execution_is_not_done_and_leaves_the_worker_alive(
    notebook, tmp_path, monkeypatch, scheduler
):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "execute", interrupted)
    (outcome,) = sweep(notebook, tmp_path / "out", {}, {"seed": [0]}, scheduler=scheduler)
    assert (outcome.state, outcome.error) == ("stopped", "interrupted")


def test_what_a_worker_finished_before_it_died_is_not_executed_again(notebook, tmp_path, executed):
    (task,) = points_of(notebook, tmp_path, {}, {"seed": [0]})
    assert not is_finished(task)
    assert module._execute(task, {}).state == "done"
    assert is_finished(task)
    assert module._execute(task, {}).state == "done"
    assert len(executed) == 1


def test_two_sweeps_into_one_folder_are_refused(notebook, tmp_path, executed, scheduler):
    out = tmp_path / "out"
    with (
        only_writer(out),
        pytest.raises(RuntimeError, match=f"another process is writing {out}"),
    ):
        sweep(notebook, out, {}, {"seed": [0]}, scheduler=scheduler)
    assert executed == []


# Holds a lock as a training run does, and tells what happened. It takes as long as its pause, or
# until it is told to end.
LOCKING = """
import fcntl, os, time
from pathlib import Path

def tell(what):
    with Path("log").open("a") as log:
        log.write(f"{seed} {what} {os.getpid()} {os.environ['OMP_NUM_THREADS']}\\n")

lock = Path(f"lock{seed}-{pause}").open("a")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
try:
    tell("begin")
    end = time.monotonic() + pause
    while time.monotonic() < end and not Path(f"end{seed}").exists():
        time.sleep(0.02)
except KeyboardInterrupt:
    tell("saved")
    raise
tell("end")
"""


def lines(folder, what):
    log = folder / "log"
    told = [line.split() for line in log.read_text().splitlines()] if log.is_file() else []
    return [line for line in told if line[1] == what]


def until(condition):
    """Wait for a condition, but not forever, and return what it came to."""
    end = time.monotonic() + 90
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_a_killed_kernel_is_a_failure_and_a_rerun_executes_it_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("dask.system.CPU_COUNT", 6)
    notebook = write_notebook(tmp_path / "n.ipynb", PARAMETERS, LOCKING)

    def kill_one_and_let_the_other_end():
        until(lambda: len(lines(tmp_path, "begin")) == 2)
        os.kill(next(int(line[2]) for line in lines(tmp_path, "begin") if line[0] == "0"), 9)
        (tmp_path / "end1").touch()

    def swept():
        grid = {"seed": [0, 1]}
        return sweep(notebook, tmp_path / "out", {"pause": 600.0}, grid, workers=2)

    killer = threading.Thread(target=kill_one_and_let_the_other_end)
    killer.start()
    killed, ended = swept()
    killer.join()
    assert (killed.state, ended.state) == ("failed", "done")
    assert "Kernel died" in killed.error
    (tmp_path / "end0").touch()
    assert states(swept()) == {"seed=0": "done", "seed=1": "skipped"}
    assert {line[3] for line in lines(tmp_path, "begin")} == {"3"}  # of six cores
    assert len(lines(tmp_path, "begin")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_a_kernel_save_and_keeps_what_is_finished(tmp_path, signum):
    notebook = write_notebook(tmp_path / "n.ipynb", PARAMETERS, LOCKING)
    command = ["sweep", str(notebook), str(tmp_path / "out"), "--workers", "2", "--json"]
    command += ["-g", "pause", "[0.0, 600.0]"]
    # A shell lets what it starts in the background ignore SIGINT, and Python then leaves it so.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from tract.cli.main import main; sys.exit(main({command}))"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    tasks = points_of(notebook, tmp_path / "out", {}, {"pause": [0.0, 600.0]})
    try:
        assert until(lambda: is_finished(tasks[0]) and len(lines(tmp_path, "begin")) == 2)
        family = psutil.Process(process.pid).children(recursive=True)
        if signum == signal.SIGINT:
            os.killpg(process.pid, signum)  # as a terminal does
        else:
            process.send_signal(signum)
        output, errors = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert errors.endswith("tract: stopped; finished work is kept\n")
    assert output == ""
    assert len(lines(tmp_path, "saved")) == 1
    assert until(lambda: not any(child.is_running() for child in family))
    assert [is_finished(task) for task in tasks] == [True, False]


def test_an_execution_that_killed_every_worker_is_a_failure_with_its_reason(notebook, tmp_path):
    (task,) = points_of(notebook, tmp_path, {}, {"seed": [0]})
    died, lost = Future(), Future()
    died.set_exception(RuntimeError("3 workers died"))
    lost.cancel()
    outcomes = [module._outcome(task, future) for future in (died, lost)]
    assert [outcome.state for outcome in outcomes] == ["failed", "failed"]
    assert outcomes[0].error == "3 workers died"
