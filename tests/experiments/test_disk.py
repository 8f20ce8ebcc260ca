"""What goes wrong around a run, in space, locks, memory and numbers: said, and nothing is lost."""

import errno
import itertools
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers import assert_identical, weights, write_notebook
from tiny import DIGITS, assert_same_run, begun, files, forked, recipe, teacher, tiny_run

from tract.cli.main import main
from tract.distill import distill, start_distillation
from tract.experiments.run import Checkpointing, branch
from tract.levels import cosine, ddpm_linear, karras
from tract.networks.weights import load_model, read_tensors
from tract.optimize import backward
from tract.unet import UNet

EVERY = Checkpointing(steps=1, keep=2)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    tiny_run(folder)
    return folder


def mount(folder, options):
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB; a checkpoint of the tiny run has 140 kB, and 210 kB in the second phase."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "size=1m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk, left):
    """Leave so many bytes on a disk; returns the file to remove to make room again."""
    blocker, space = disk / "blocker", os.statvfs(disk)
    blocker.write_bytes(bytes(space.f_bavail * space.f_frsize - left))
    return blocker


def steps_saved(folder):
    return [int(p.stem.split("-")[1]) for p in sorted(folder.glob("checkpoint-*"))]


def assert_intact(folder):
    """Checkpoints can be read, and nothing half-written lies beside them."""
    assert steps_saved(folder)
    for path in folder.glob("checkpoint-*"):
        read_tensors(path)
    assert list(folder.glob(".*.tmp")) == []


# ---- Space ------------------------------------------------------------------------------------


def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_space(small_disk, whole):
    folder = small_disk / "run"
    begun(folder, 3, saving=EVERY)
    blocker = fill(small_disk, left=16_384)  # room for lines alone
    with pytest.raises(OSError, match="No space left.*: free space, .* run it again; run run can"):
        tiny_run(folder, saving=EVERY)
    assert_intact(folder)
    assert steps_saved(folder) == [2, 3]
    blocker.unlink()
    tiny_run(folder)
    assert_same_run(folder, whole)


def test_a_history_that_no_longer_fits_loses_nothing(small_disk, whole):
    folder = small_disk / "run"
    begun(folder, 3, saving=EVERY)
    blocker = fill(small_disk, left=0)
    with pytest.raises(
        OSError, match="No space left.*resume from its last checkpoint once there is"
    ):
        tiny_run(folder)
    assert_intact(folder)
    blocker.unlink()
    tiny_run(folder)
    assert_same_run(folder, whole)


def test_the_command_ends_in_one_line_where_the_disk_is_full(small_disk, tmp_path, capsys):
    source = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tiny import tiny_run
from tract.experiments.run import Checkpointing
tiny_run({str(small_disk / "run")!r}, saving=Checkpointing(steps=1))"""
    notebook = write_notebook(tmp_path / "n.ipynb", "images = 1", source)
    fill(small_disk, left=65_536)
    assert main(["run", str(notebook), str(tmp_path / "out.ipynb")]) == 1
    error = capsys.readouterr().err
    assert "No space left" in error
    assert "free space" in error
    assert not (small_disk / "run" / "model.safetensors").exists()


def test_a_notebook_that_cannot_be_written_is_one_line(small_disk, tmp_path, capsys):
    notebook = write_notebook(tmp_path / "n.ipynb", "images = 1", "x = 'x' * 10")
    fill(small_disk, left=0)
    output = small_disk / "out.ipynb"
    assert main(["run", str(notebook), str(output)]) == 1
    assert f"cannot write {output} (No space left" in capsys.readouterr().err


def test_a_file_that_may_not_grow_is_a_full_disk_too(tmp_path, whole):
    # The same without a mount: a limit on the size of files, set in a process of its own.
    folder, said = tmp_path / "run", tmp_path / "said"
    begun(folder, 3, saving=EVERY)
    size = (folder / "checkpoint-000000003.safetensors").stat().st_size

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))
        try:
            tiny_run(folder, saving=EVERY)
        except OSError as error:
            said.write_text(str(error))
            os._exit(7)

    assert forked(limited) == 7
    assert "cannot write" in said.read_text()
    assert "free space" in said.read_text()
    assert "can resume from its last checkpoint" in said.read_text()
    assert_intact(folder)
    assert steps_saved(folder) == [2, 3]
    tiny_run(folder)
    assert_same_run(folder, whole)


def test_a_model_that_cannot_be_written_leaves_the_last_checkpoint(tmp_path, whole, monkeypatch):
    folder = tmp_path / "run"
    real, full = os.fsync, True

    def fsync(descriptor):
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if full and "model" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="cannot write .*model.* No space left .*|No space left"):
        tiny_run(folder)
    assert_intact(folder)
    full = False
    tiny_run(folder)
    assert_same_run(folder, whole)


def test_a_read_only_folder_is_refused_and_untouched(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, "size=4m")
    try:
        begun(disk / "run", 3, saving=EVERY)
        before = files(disk)
        command = ["mount", "-o", "remount,ro", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a mounted file system cannot be made read-only here")
        for name in ("run", "new"):
            with pytest.raises(OSError, match=f"cannot write to .*{name} .*: use another run_dir"):
                tiny_run(disk / name)
        with pytest.raises(OSError, match="cannot write .*: free space, correct permissions"):
            branch(disk / "run", disk / "copy")
        assert main(["run", str(write_notebook(tmp_path / "n.ipynb", "x = 1")), str(disk)]) == 1
        assert files(disk) == before
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_branch_that_does_not_fit_leaves_nothing(small_disk, tmp_path):
    begun(tmp_path / "run", 3, saving=EVERY)
    fill(small_disk, left=65_536)
    with pytest.raises(OSError, match="cannot write .*No space left.*: free space"):
        branch(tmp_path / "run", small_disk / "copy")
    assert [p.name for p in small_disk.iterdir()] == ["blocker"]


# ---- Two writers ------------------------------------------------------------------------------

# Waits within a step until its input ends, but not forever: a second writer that waits for the
# first would, too.
WRITER = """
import select, sys
from tiny import recipe, tiny_run
def waiting(records):
    for record in records:
        if record.step == 2:
            select.select([sys.stdin], [], [], 60)
        yield record
tiny_run(sys.argv[1], recipe(15), watch=waiting)
"""


def writer(folder):
    """Another process that writes a run: one step is done, the next until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None and not (folder / "history.jsonl").is_file():
        time.sleep(0.01)
    return process


def test_a_second_writer_is_refused_at_once_and_the_first_goes_on(tmp_path):
    tiny_run(tmp_path / "whole", recipe(15))  # before the other, for what only a first run imports
    first = writer(tmp_path / "run")
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="another process is writing .*run: wait .*run_dir"):
        tiny_run(tmp_path / "run", recipe(15))
    assert time.monotonic() - start < 10
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    first = writer(tmp_path / "run")
    first.kill()
    first.wait()
    assert (tmp_path / "run" / ".lock").exists()
    tiny_run(tmp_path / "run", recipe(2))  # of what it had not saved, other settings may be used
    assert (tmp_path / "run" / "model.safetensors").is_file()


# ---- Memory and numbers -----------------------------------------------------------------------


def failing(monkeypatch, network, at, error):
    """Let a network's forward pass fail at its at-th call."""
    real, calls = network.forward, 0

    def forward(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return real(self, *arguments)

    monkeypatch.setattr(network, "forward", forward)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("CUDA"), "out of memory at 4 images at a time: add micro_batch=2"),
        (MemoryError(), "out of memory with batch 4: use a smaller batch"),
    ],
)
def test_out_of_memory_names_what_fits_and_the_run_goes_on(
    tmp_path, whole, monkeypatch, error, message
):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        failing(patch, UNet, 14, error)
        with pytest.raises(RuntimeError, match=message):
            tiny_run(folder, saving=EVERY)
    assert_intact(folder)
    tiny_run(folder)
    assert_same_run(folder, whole)


def spoil_gradient(error):
    """The same errors, with a gradient that is no number, as 0 * inf gives."""
    return error + (error * 0).sqrt() * 0


@pytest.mark.parametrize("spoil", [lambda error: error * math.nan, spoil_gradient])
def test_no_number_leaves_the_last_checkpoint_and_a_branch_takes_another_rate(
    tmp_path, whole, monkeypatch, spoil
):
    folder, steps = tmp_path / "run", itertools.count(1)

    def spoilt(error, weight, rows):
        return backward(spoil(error) if next(steps) == 5 else error, weight, rows)

    with monkeypatch.context() as patch:
        patch.setattr("tract.optimize.backward", spoilt)
        with pytest.raises(FloatingPointError, match="at step 5, .*learning_rate .*tract branch"):
            tiny_run(folder, saving=EVERY)
    assert_intact(folder)
    assert steps_saved(folder) == [3, 4]
    other = recipe(learning_rate=1e-5)
    with pytest.raises(
        ValueError, match=r"learning_rate \(0.001 there, 1e-05 here\).*tract branch"
    ):
        tiny_run(folder, other)
    branch(folder, tmp_path / "branch")
    tiny_run(tmp_path / "branch", other)
    assert len(pd.read_json(tmp_path / "branch" / "history.jsonl", lines=True)) == 12
    tiny_run(folder)  # the old one is as it was
    assert_same_run(folder, whole)
    ours, theirs = (weights(load_model(tmp_path / name)[0]) for name in ("branch", "run"))
    assert bool(ours.isfinite().all())
    assert not torch.equal(ours, theirs)


# ---- Branches ---------------------------------------------------------------------------------


def test_the_command_branches_what_is_unfinished_and_keeps_what_is_finished(
    tmp_path, whole, capsys
):
    runs = tmp_path / "runs"
    begun(runs / "unfinished", 7, saving=EVERY)
    tiny_run(runs / "finished")
    before = files(runs)
    assert main(["branch", str(runs), str(tmp_path / "new")]) == 0
    assert f"{tmp_path / 'new'}: finished runs stay finished" in capsys.readouterr().out
    assert files(runs) == before
    other = recipe(learning_rate=1e-2)
    with pytest.raises(ValueError, match="begun with other values of settings.learning_rate"):
        tiny_run(tmp_path / "new" / "finished", other)
    tiny_run(tmp_path / "new" / "unfinished", other)
    assert "resuming after step 7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("nowhere", "new", "no run directory .*nowhere: correct the path"),
        ("run", "run", "run exists already: give a new name"),
        ("run", "run/inside", "is inside .* copied into itself"),
    ],
)
def test_a_branch_that_cannot_be_is_one_line(tmp_path, capsys, old, new, problem):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "card.json").write_text("{}")
    before = files(tmp_path)
    assert main(["branch", str(tmp_path / old), str(tmp_path / new)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(problem, error)
    assert files(tmp_path) == before


# ---- When checkpoints are written, and the best by a metric -----------------------------------


@pytest.mark.parametrize(("steps", "keep"), [(0, 2), (1, 1), (1, 3), (4, 2)])
def test_checkpoints_are_kept_as_asked_and_written_at_the_ends_of_phases(tmp_path, steps, keep):
    saved = []

    def watch(records):
        for record in records:
            saved.append(steps_saved(tmp_path / "run"))
            yield record
            saved.append(steps_saved(tmp_path / "run"))

    tiny_run(tmp_path / "run", saving=Checkpointing(steps=steps, keep=keep), watch=watch)
    times = [i for i in range(1, 13) if i % 6 == 0 or (steps and i % steps == 0)]
    # Looked at while step 12 is yielded back: it is saved before the loop asks for the next.
    assert saved[-1] == times[-keep:]
    assert all(len(names) <= keep for names in saved)


def measured(denoiser):
    """Some number of a network that rises and falls over a run."""
    return math.sin(1e3 * weights(denoiser).double().sum().item())


BEST = Checkpointing(steps=2, metric=measured, metric_every=1)


@pytest.fixture(scope="module")
def best_whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "best"
    tiny_run(folder, saving=BEST)
    return folder


def test_the_best_by_a_metric_is_the_lowest(best_whole):
    values = pd.read_json(best_whole / "metric.jsonl", lines=True, precise_float=True).metric
    assert len(values) == 12
    assert 0 < values.argmin() < 11  # not simply the first or the last
    denoiser, card = load_model(best_whole / "best.safetensors")
    assert (card["step"], card["metric"]) == (values.argmin() + 1, values.min())
    assert measured(denoiser) == values.min()


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_the_best_survives_an_interruption(tmp_path, best_whole, step):
    begun(tmp_path / "run", step, saving=BEST)
    tiny_run(tmp_path / "run", saving=BEST)
    assert_same_run(tmp_path / "run", best_whole)
    ours, theirs = ((f / "metric.jsonl").read_text() for f in (tmp_path / "run", best_whole))
    assert ours == theirs
    (ours, card), (theirs, expected) = (
        read_tensors(f / "best.safetensors") for f in (tmp_path / "run", best_whole)
    )
    assert_identical(ours, theirs)
    assert card == expected


def test_no_number_is_never_the_best(tmp_path):
    draw = iter([math.nan, 0.5, math.nan, 0.3, 0.4, math.nan, *[0.6] * 6])
    saving = Checkpointing(metric=lambda denoiser: next(draw), metric_every=1)
    begun(tmp_path / "run", 6, saving=saving)
    assert load_model(tmp_path / "run" / "best.safetensors")[1]["metric"] == 0.3
    tiny_run(tmp_path / "run", saving=saving)  # past nan in metric.jsonl
    assert load_model(tmp_path / "run" / "best.safetensors")[1]["metric"] == 0.3


# ---- Heun's teacher ---------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "fits"), [(cosine, False), (karras, True), (ddpm_linear, True)])
def test_heuns_teacher_is_refused_where_its_step_multiplies_errors(make, fits):
    levels = make(1000)
    settings = recipe(step_schedule=(1000, 10, 1), solver="heun")
    state = start_distillation(teacher(), settings)
    if fits:
        assert next(distill(state, DIGITS, levels, settings)).step == 1
        return
    with pytest.raises(ValueError, match="is 'heun'.* 22,026 at .*: use karras .* or .* 'ddim'"):
        distill(state, DIGITS, levels, settings)
