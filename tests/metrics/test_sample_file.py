"""Samples as files: the pixels that were made, whole or not at all, however often interrupted."""

import os
import signal
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from tiny import forked, teacher, together

from tract.base.parallel import rank
from tract.cli.main import main
from tract.metrics import sample_file as writer
from tract.metrics.sample_file import AHEAD, write_samples
from tract.metrics.sources import Source, open_source
from tract.networks.weights import save_model

COUNT, BATCH = 30, 4


def samples(channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (COUNT, channels, 4, 6), generator=generator).to(torch.uint8)


def source_of(images, reads=None, at=None, how=None, **about):
    """A model of these images that notes what is asked, and lets something happen at a batch."""

    def read(start, stop):
        if start == at:
            how()
        if reads is not None:
            reads.append(start)
        return images[start:stop]

    return Source("model", about, frozenset([tuple(images.shape[1:])]), None, read)


def disk_failure():
    raise OSError("no such disk")


def sigterm():
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("ending", ["npz", "zip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_holds_the_pixels_that_were_made(tmp_path, ending, channels):
    images, path = samples(channels), tmp_path / f"a.{ending}"
    write_samples(source_of(images), COUNT, path, batch=BATCH)
    with zipfile.ZipFile(path) as archive:
        if ending == "npz":
            found = np.load(path)["arr_0"]
        else:
            pngs = [Image.open(archive.open(name)) for name in sorted(archive.namelist())]
            found = np.stack([np.asarray(png).reshape(4, 6, channels) for png in pngs])
    assert torch.equal(torch.from_numpy(found).permute(0, 3, 1, 2), images)
    assert open_source(path)(None, 0).shapes == {(channels, 4, 6)}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.fixture(scope="module", params=["npz", "zip"])
def whole(request, tmp_path_factory):
    """A file that was written without interruption."""
    path = tmp_path_factory.mktemp("whole") / f"a.{request.param}"
    write_samples(source_of(samples()), COUNT, path, batch=BATCH)
    return path


@pytest.mark.parametrize("how", [disk_failure, sigterm])
@pytest.mark.parametrize("at", [0, 12, 28])
def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path, whole, how, at):
    path, reads = tmp_path / whole.name, []
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_samples(source_of(samples(), reads, at, how), COUNT, path, batch=BATCH)
    assert [p.name for p in tmp_path.iterdir()] == [f".{path.name}.part"]
    write_samples(source_of(samples(), reads), COUNT, path, batch=BATCH)
    assert reads == list(range(0, COUNT, BATCH))
    assert path.read_bytes() == whole.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def kill_me(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("when", ["sampling", "finishing", "renaming"])
def test_killed_it_leaves_nothing_under_the_name_and_goes_on(tmp_path, whole, monkeypatch, when):
    path = tmp_path / whole.name

    def run():
        if when == "finishing":
            writer._chunks = kill_me
        if when == "renaming":
            type(path).replace = kill_me
        how = kill_me if when == "sampling" else list
        write_samples(source_of(samples(), at=12, how=how), COUNT, path, batch=BATCH)

    assert forked(run) == -signal.SIGKILL
    assert not path.exists()
    write_samples(source_of(samples()), COUNT, path, batch=BATCH)
    assert path.read_bytes() == whole.read_bytes()


def test_a_batch_that_was_half_written_is_made_again(tmp_path, whole):
    path, reads = tmp_path / whole.name, []
    part = tmp_path / f".{path.name}.part"
    with pytest.raises(OSError, match="disk"):
        write_samples(source_of(samples(), at=12, how=disk_failure), COUNT, path, batch=BATCH)
    part.write_bytes(part.read_bytes()[:-5])
    write_samples(source_of(samples(), reads), COUNT, path, batch=BATCH)
    assert reads[0] == 8
    assert path.read_bytes() == whole.read_bytes()


def test_a_finished_file_is_not_made_again_and_another_is_left_alone(tmp_path, capsys):
    path, reads = tmp_path / "a.npz", []
    write_samples(source_of(samples(), seed=1), COUNT, path, batch=BATCH)
    write_samples(source_of(samples(), reads, seed=1), COUNT, path, batch=BATCH)
    assert reads == []
    assert "30 images, finished before" in capsys.readouterr().out
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="exists, with other contents"):
        write_samples(source_of(samples(), seed=2), COUNT, path, batch=BATCH)
    assert path.read_bytes() == before


def test_the_beginning_of_other_samples_is_left_alone(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(OSError, match="disk"):
        write_samples(source_of(samples(), at=0, how=disk_failure, seed=1), COUNT, path)
    with pytest.raises(ValueError, match="the beginning of other samples: give another name"):
        write_samples(source_of(samples(), seed=2), COUNT, path)


def test_samples_are_not_made_far_ahead_of_a_slow_disk(tmp_path, monkeypatch):
    slow, reads, fsync = threading.Event(), [], os.fsync

    def waiting(descriptor):
        slow.wait(30)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", waiting)
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(
            write_samples, source_of(samples(), reads), COUNT, tmp_path / "a.npz", batch=1
        )
        until = time.monotonic() + 20
        while len(reads) <= AHEAD and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)  # in which all 30 would be made
        ahead = len(reads)
        slow.set()
        done.result(30)
    assert ahead == AHEAD + 1
    assert len(reads) == COUNT


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path, monkeypatch):
    path, calls, fsync = tmp_path / "a.npz", [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"a\.npz\.part \(No space left.*run it again"):
        write_samples(source_of(samples()), COUNT, path, batch=BATCH)
    assert not path.exists()
    reads = []
    write_samples(source_of(samples(), reads), COUNT, path, batch=BATCH)
    assert reads[0] >= 8


def test_bad_names_and_a_second_writer_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a.png ends in none of .npz, .zip"):
        write_samples(source_of(samples()), COUNT, tmp_path / "a.png")
    with (
        FileLock(tmp_path / ".a.npz.lock"),
        pytest.raises(RuntimeError, match="another process is writing"),
    ):
        write_samples(source_of(samples()), COUNT, tmp_path / "a.npz")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_write_the_bytes_of_one(tmp_path, whole):
    def both():
        reads = []
        write_samples(source_of(samples(), reads), COUNT, tmp_path / whole.name, batch=BATCH)
        (tmp_path / f"reads{rank()}").write_text(repr(reads))

    assert together(both, tmp_path) == [0, 0]
    assert (tmp_path / whole.name).read_bytes() == whole.read_bytes()
    assert (tmp_path / "reads0").read_text() == "[0, 8, 16, 24]"
    assert (tmp_path / "reads1").read_text() == "[4, 12, 20, 28]"


def test_the_command_writes_what_a_model_samples(tmp_path, monkeypatch, capsys):
    experiment = {"noise_schedule": "cosine", "clamp": True, "teacher_steps": 16}
    save_model(tmp_path / "a.safetensors", teacher(), {"experiment": experiment})
    monkeypatch.chdir(tmp_path)
    command = ["sample", "a.safetensors", "a.npz", "--samples", "6", "--steps", "2"]
    assert main([*command, "--seed", "3"]) == 0
    made = open_source("a.safetensors")(2, 3).read(0, 6)
    found = open_source("a.npz")(None, 0).read(0, 6)
    assert sorted(found.flatten(1).tolist()) == sorted(made.flatten(1).tolist())
    assert main(["sample", "digits", "b.npz", "--steps", "2"]) == 1
    assert "digits is no model to sample from" in capsys.readouterr().err
