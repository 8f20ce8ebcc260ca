"""Further processes train along, are stopped and killed, and whatever happens the run goes on."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace

import psutil
import pytest
import torch
import torch.distributed as dist
from helpers import write_notebook
from safetensors.torch import load_file
from tiny import forked, teacher

from tract.cli.main import main
from tract.experiments import experiment as experiments
from tract.experiments import team, worker
from tract.experiments.card import claim, read_card
from tract.experiments.experiment import TEACHER, Experiment, run_name
from tract.experiments.history import history
from tract.experiments.run import Checkpointing
from tract.experiments.team import follow, team_size, together
from tract.networks.weights import fingerprint, save_model
from tract.settings import Distillation, Training

SETTINGS = Distillation(train_images=8 * 20, batch_size=8, step_schedule=(16, 4, 1))
NAME = run_name(SETTINGS)


def experiment(folder):
    """An experiment with a tiny teacher."""
    begun = Experiment(folder, "digits", teacher_steps=16, reference_steps=16, num_samples=4)
    (folder / TEACHER).mkdir(parents=True)
    save_model(folder / TEACHER / "model.safetensors", teacher(), {})
    return begun


def helpers():
    """Processes that were started to train along: other tests leave other children."""
    return [p for p in psutil.Process().children() if "tract.experiments.worker" in p.cmdline()]


def signalled(run, step, signum):
    """Make a run's steps, and send a signal to the process that trains along once one is done.

    Then the run ends within 30 seconds, even where other tests take all cores.
    """
    sent = 0
    try:
        for record in run:
            if record.step == step:
                (helper,) = helpers()
                helper.send_signal(signum)
                sent = time.monotonic()
    finally:
        assert time.monotonic() - sent < 30


def assert_close(folder, whole):
    """Weights and losses are those of one process, but for what Adam makes of rounding."""
    ours, theirs = (load_file(f / NAME / "model.safetensors") for f in (folder, whole))
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in theirs])
    assert apart.square().mean().sqrt() < 0.01 * SETTINGS.learning_rate  # after twenty such steps
    ours, theirs = (history(f / NAME) for f in (folder, whole))
    assert list(ours.step) == list(theirs.step)
    torch.testing.assert_close(*(torch.tensor(h.loss) for h in (ours, theirs)), rtol=1e-3, atol=0)


@pytest.mark.slow
def test_a_run_is_stopped_by_one_process_broken_by_another_and_ended_by_a_single_one(
    tmp_path, capfd
):
    experiment(tmp_path / "whole").distill(SETTINGS)
    begun, saving = experiment(tmp_path / "run"), Checkpointing(steps=4)
    with pytest.raises(KeyboardInterrupt):
        signalled(begun.run(SETTINGS, saving=saving, processes=2), 5, signal.SIGTERM)
    (step,) = re.findall(r"saved at step (\d+); run it again", capfd.readouterr().out)
    assert len(history(begun.folder / NAME)) == int(step) < SETTINGS.num_steps
    assert helpers() == []
    with pytest.raises(RuntimeError, match="process 1 of 2 ended with status -9.*run it again"):
        signalled(begun.run(SETTINGS, saving=saving, processes=2), 13, signal.SIGKILL)
    assert f"resuming after step {step}" in capfd.readouterr().out
    assert not dist.is_initialized()
    begun.distill(SETTINGS, saving)
    assert "resuming after step 12" in capfd.readouterr().out
    assert_close(begun.folder, tmp_path / "whole")


def test_a_process_that_cannot_prepare_ends_the_run_before_it_begins(tmp_path, monkeypatch):
    def others(size):
        store = dist.FileStore(str(tmp_path / "store"), size)
        return nullcontext((store, 0, []))

    def unable(task):
        raise ValueError(f"no data for {task['run']}: fetch them")

    def following():
        with pytest.raises(ValueError, match="fetch them"):
            follow(dist.FileStore(str(tmp_path / "store"), 2), 1, 2, unable)

    monkeypatch.setattr(team, "_others", others)
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(forked, following)
        message = "process 1 of 2: no data for digits: fetch them"
        with pytest.raises(RuntimeError, match=message), together({"run": "digits"}, 2, ""):
            raise AssertionError("began")
        assert ended.result() == 0


def test_a_process_has_its_own_gpu_before_it_puts_anything_there(tmp_path, monkeypatch):
    store, done = dist.FileStore(str(tmp_path / "store"), 1), []

    def prepare(task):
        done.append(task)
        return lambda: store.set("end", "")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", done.append)
    monkeypatch.setattr(team, "joined", lambda *group: nullcontext())
    store.set("0/task", json.dumps("prepared"))
    follow(store, 3, 4, prepare)
    assert done == [3, "prepared"]


@pytest.fixture
def tasks(monkeypatch):
    """Tasks that others would have been given; nobody joins."""
    given = []

    def alone(task, size, checkpoint):
        given.append(json.loads(json.dumps(task | {"checkpoint": checkpoint, "threads": 1})))
        return nullcontext()

    monkeypatch.setattr(experiments, "together", alone)
    return given


def test_a_task_is_all_that_another_process_needs_to_train_the_same_teacher(tmp_path, tasks):
    begun = Experiment(tmp_path / "run", "digits", conditional=True)
    result = begun.train_teacher(
        "digits", Training(train_images=4, batch_size=2, seed=3), processes=2
    )
    work = worker.prepare(tasks[0])
    state, _ = work.args
    work()  # alone
    assert fingerprint(state.ema) == fingerprint(result)
    assert (
        read_card(begun.folder / TEACHER / "card.json", whole=True)["provenance"]["processes"] == 2
    )


def test_a_task_is_all_that_another_process_needs_to_go_on_from_a_checkpoint(tmp_path, tasks):
    growing = replace(SETTINGS, step_schedule=([4, 16], 1))
    begun = experiment(tmp_path / "run")
    run = begun.run(growing, processes=2)
    with pytest.raises(KeyboardInterrupt):
        for record in run:
            run.stop.requested = record.step == 4
    shutil.copytree(begun.folder, tmp_path / "stopped")
    result = begun.distill(growing, processes=2)
    assert [task["checkpoint"] for task in tasks] == ["", "checkpoint-000000005.safetensors"]
    for task in tasks:
        task["experiment"]["folder"] = str(tmp_path / "stopped")  # whose checkpoint is still there
        work = worker.prepare(task)
        state, _ = work.args
        work()
        assert fingerprint(state.ema) == fingerprint(result)


def test_other_data_in_another_process_are_refused(tmp_path):
    task = Experiment(tmp_path, "digits").task(Training(train_images=8, batch_size=4), "digits")
    task["experiment"]["data_sha256"] = "of others"
    with pytest.raises(ValueError, match="the data digits have changed since .* was begun"):
        worker.prepare(task | {"threads": 1})


def test_a_number_of_processes_that_cannot_be_is_refused_before_anything_is_computed(
    tmp_path, monkeypatch
):
    begun = Experiment(tmp_path, "digits")
    with pytest.raises(ValueError, match="batch_size is 8, which 3 processes cannot share"):
        begun.train_teacher("digits", Training(train_images=8, batch_size=8), processes=3)
    with pytest.raises(ValueError, match="processes is 0: use 1 or more"):
        begun.distill(SETTINGS, processes=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="processes is 8, but this machine has 4 GPUs"):
        team_size(8)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert team_size(1) == 16
    with pytest.raises(ValueError, match="processes is 2, but 16 were launched"):
        team_size(2)
    assert list(tmp_path.iterdir()) == []


def test_commands_for_one_process_refuse_to_be_launched(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["models"]) == 1
    assert "start it without a launcher" in capsys.readouterr().err


CELL = """
from tract.experiments.experiment import open_experiment
from tract.settings import Distillation
settings = Distillation(train_images=160, batch_size=8, step_schedule=[16, 4, 1])
open_experiment(run_dir).distill(settings)
"""


@pytest.mark.slow
def test_launched_processes_carry_through_the_run_of_a_notebook(tmp_path):
    whole, begun = experiment(tmp_path / "whole"), experiment(tmp_path / "run")
    whole.distill(SETTINGS)
    claim(begun.folder / "experiment.json", begun.card(), note={"data_dir": ""})
    # Seen from the notebook's folder, as the presets have it; the launcher is started elsewhere.
    notebook = write_notebook(tmp_path / "a.ipynb", "run_dir = 'run'", CELL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, "-m", "tract", "run", str(notebook), str(tmp_path / "out.ipynb")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes train together") == 1  # and the first alone says so
    assert_close(begun.folder, whole.folder)
