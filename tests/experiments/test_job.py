"""A run as a process of its own ends in the weights of one trained here, and says how it is."""

import io
import json
import os
import signal
from dataclasses import replace

import psutil
import pytest
import torch
from helpers import allow_tf32, end_job, task_in, wait, weights
from jupyter_client.manager import start_new_kernel
from tiny import begun, files, recipe, tiny_run

from tract.denoiser import Denoiser
from tract.experiments import job
from tract.experiments.history import history
from tract.experiments.job import launch, read_task, train_in_turn
from tract.experiments.preview import PHASE_METRIC, level_errors, read_preview
from tract.experiments.status import (
    STOP,
    Status,
    process_of,
    read_status,
    request_stop,
    write_status,
)
from tract.networks.weights import load_model
from tract.settings import Distillation, Training

SETTINGS = Distillation(step_schedule=(16, 4, 1), train_images=400, batch_size=4, seed=1)


@pytest.fixture
def task(tmp_path):
    made = task_in(tmp_path / "job", SETTINGS)
    yield made
    end_job(made.folder)


@pytest.mark.parametrize("settings", [SETTINGS, Training(train_images=8, batch_size=4)])
def test_errors_by_level_are_float32_in_full(task, monkeypatch, settings):
    state, *_ = task.experiment.start(SETTINGS)
    seen = allow_tf32(monkeypatch, Denoiser, "forward")
    level_errors(task.experiment, settings, state)
    assert seen and not any(seen)


@pytest.mark.slow
def test_a_job_that_is_stopped_and_resumed_has_the_weights_of_one_run(task, tmp_path):
    task.write()
    job.stand_by()
    ready = job._ready.pid
    launch([task.folder])
    assert read_status(task.folder).active
    assert read_status(task.folder).pid == ready
    with pytest.raises(RuntimeError, match="is being trained already: wait for it, or stop it"):
        launch([task.folder])
    wait(task.folder, lambda status: status.step >= 5)
    request_stop(task.folder)
    stopped = wait(task.folder, lambda status: not status.active)
    assert stopped.state == "stopped"
    assert 5 <= stopped.step < 100
    wait(task.folder, lambda status: read_preview(task.folder)[1]["step"] == stopped.step)
    launch([task.folder])
    wait(task.folder, lambda status: status.state == "finished")
    here = task_in(tmp_path / "here", SETTINGS)
    student = here.train()
    assert torch.equal(weights(student), weights(load_model(task.folder)[0]))
    ours, theirs = (history(t.folder).drop(columns="seconds") for t in (task, here))
    assert ours.equals(theirs)
    for name in ("metric.jsonl", PHASE_METRIC):
        assert (task.folder / name).read_text() == (here.folder / name).read_text()


@pytest.mark.slow
def test_a_job_goes_on_when_its_kernel_is_killed(task):
    task.write()
    kernel, client = start_new_kernel()
    client.execute("from pathlib import Path; from tract.experiments.job import launch")
    client.execute(f"launch([Path({str(task.folder)!r})])")
    job = psutil.Process(wait(task.folder, lambda status: status.step >= 5).pid)
    job.suspend()  # or it might have finished before
    kernel.signal_kernel(signal.SIGKILL)  # its process group
    client.stop_channels()
    kernel.cleanup_resources()
    job.resume()
    assert wait(task.folder, lambda status: not status.active).state == "finished"


def test_a_process_that_is_given_no_runs_ends(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # as when its kernel ends
    assert job.main() == 0


def test_a_run_that_is_watched_is_the_run_that_is_not(task, tmp_path):
    plain = task_in(tmp_path / "plain", SETTINGS).experiment.distill(SETTINGS)
    assert torch.equal(weights(task.train()), weights(plain))
    tensors, about = read_preview(task.folder)
    assert about == {"step": 100, "phase": "4>1", "nfe": 1, "own": 1}
    assert tensors["samples"].shape == (12, 1, 8, 8)
    steps = [json.loads(line)["step"] for line in (task.folder / PHASE_METRIC).open()]
    assert steps == [20, 40]  # the last phase's steps are the metric's own


def test_a_task_is_read_as_it_was_written(task):
    training = replace(task, settings=Training(train_images=64, batch_size=4), network="digits")
    for written in (task, training):
        written.write()
        read = read_task(written.folder)
        assert read.settings == written.settings
        assert replace(read, experiment=task.experiment, settings=task.settings) == replace(
            written, settings=task.settings
        )
        assert read.experiment.card() == task.experiment.card()


def test_what_a_job_cannot_train_is_said_in_its_status(task):
    task.write()
    (task.experiment.folder / "teacher" / "model.safetensors").write_bytes(b"no weights")
    owner = process_of(os.getpid())
    other = task.experiment.folder / "other"
    other.mkdir()
    for folder in (task.folder, other):
        write_status(folder, Status("waiting", **owner))
    assert train_in_turn([task.folder, other]) == 1
    status = read_status(task.folder)
    assert status.state == "failed"
    assert "model.safetensors is damaged" in status.message
    assert not read_status(other).active


def test_what_was_begun_with_other_settings_is_refused_before_a_job_starts(tmp_path):
    made = task_in(tmp_path / "run", SETTINGS)
    training = Training(train_images=64, batch_size=4)
    task = replace(made, settings=training, network="digits", metric_every=0)
    (task.folder / "model.safetensors").unlink()
    task.check()
    task.train()
    with pytest.raises(ValueError, match=r"begun with other values of settings.seed"):
        replace(task, settings=replace(training, seed=1)).check()


def test_every_run_has_a_status(tmp_path):
    folder = tmp_path / "run"
    assert read_status(folder).state == "new"
    begun(folder, 5)
    status = read_status(folder)
    assert (status.state, status.step, status.message) == ("failed", 5, "'power cut'")
    tiny_run(folder)
    status = read_status(folder)
    assert (status.state, status.step, status.num_steps) == ("finished", 12, 12)
    assert status.pid == os.getpid()
    (folder / "model.safetensors").unlink()
    assert read_status(folder).state == "new"


def test_a_request_is_for_the_process_that_trains_and_for_no_later_one(tmp_path):
    folder = tmp_path / "run"

    def asking(pid):
        def watch(records):
            for record in records:
                if record.step == 3:
                    (folder / STOP).write_text(str(pid))
                yield record

        return watch

    with pytest.raises(KeyboardInterrupt):
        tiny_run(folder, watch=asking(os.getpid()))
    assert read_status(folder).state == "stopped"
    assert read_status(folder).step == 3
    assert not (folder / STOP).exists()
    request_stop(folder)  # of a run that nobody trains
    assert not (folder / STOP).exists()
    tiny_run(folder, recipe(), watch=asking(1))
    assert read_status(folder).state == "finished"
    assert "stop" not in files(folder)


def test_a_process_of_the_same_number_is_another_one(tmp_path):
    owner = process_of(os.getpid())
    write_status(tmp_path, Status("running", step=3, **owner))
    assert read_status(tmp_path).active
    write_status(tmp_path, Status("running", step=3, **owner | {"created": 1.0}))
    assert read_status(tmp_path).state == "failed"
    write_status(tmp_path, Status("running", **owner | {"created": 1.0, "host": "elsewhere"}))
    assert read_status(tmp_path).active  # nothing is known of it but what it writes
