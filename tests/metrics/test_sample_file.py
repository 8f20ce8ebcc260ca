"""Samples as files: the pixels that were made, none made twice, however often interrupted."""

import signal
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import teacher, together

from tract.base.parallel import rank
from tract.cli.main import main
from tract.metrics.sample_file import CARD, write_samples
from tract.metrics.sources import Source, open_source
from tract.networks.weights import save_model

COUNT, BATCH = 30, 4


def samples(channels=3):
    generator = torch.Generator().manual_seed(0)
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


@pytest.mark.parametrize("ending", ["", ".npz", ".zip"])
@pytest.mark.parametrize("channels", [1, 3])
def test_files_hold_the_pixels_that_were_made(tmp_path, ending, channels):
    images, path = samples(channels), tmp_path / f"a{ending}"
    write_samples(source_of(images), COUNT, path, batch=BATCH)
    if ending == ".npz":
        found = np.load(path)["arr_0"]
    else:
        names = [f"{i:06}.png" for i in range(COUNT)]
        archive = zipfile.ZipFile(path) if ending else None
        opened = [archive.open(name) if archive else path / name for name in names]
        found = np.stack([np.asarray(Image.open(file)) for file in opened])
        assert archive is None or sorted(archive.namelist()) == names
    assert torch.equal(torch.from_numpy(found.reshape(-1, 4, 6, channels)), images.movedim(1, 3))
    assert open_source(path)(None, 0).shapes == {(channels, 4, 6)}


@pytest.fixture(scope="module", params=["npz", "zip"])
def whole(request, tmp_path_factory):
    """A file that was written without interruption, in larger batches."""
    path = tmp_path_factory.mktemp("whole") / f"a.{request.param}"
    write_samples(source_of(samples()), COUNT, path, batch=7)
    return path


@pytest.mark.parametrize("how", [disk_failure, sigterm])
@pytest.mark.parametrize("at", [0, 12, 28])
def test_what_was_interrupted_resumes_to_the_same_bytes(tmp_path, whole, how, at):
    path, reads = tmp_path / whole.name, []
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_samples(source_of(samples(), reads, at, how), COUNT, path, batch=BATCH)
    assert not path.exists()
    write_samples(source_of(samples(), reads), COUNT, path, batch=BATCH)
    assert reads == list(range(0, COUNT, BATCH))
    assert path.read_bytes() == whole.read_bytes()


def test_a_missing_image_is_made_again_with_its_batch_and_more_are_added(tmp_path, capsys):
    reads = []
    for count, gone, expected in [(20, 0, [0, 4, 8, 12, 16]), (20, 5, [4]), (20, None, [])]:
        if gone is not None:
            (tmp_path / "a" / f"{gone:06}.png").unlink(missing_ok=True)
        write_samples(source_of(samples(), reads), count, tmp_path / "a", batch=BATCH)
        assert reads == expected
        reads.clear()
    assert "20 images, all made before" in capsys.readouterr().out
    write_samples(source_of(samples(), reads), COUNT, tmp_path / "a", batch=BATCH)
    assert reads == [20, 24, 28]


def test_other_samples_and_other_files_are_left_alone(tmp_path):
    write_samples(source_of(samples(), seed=1), 2, tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match=f"a holds other samples, see {CARD}: give another name"):
        write_samples(source_of(samples(), seed=2), 2, tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    (tmp_path / "b.zip").write_text("mine")
    with pytest.raises(FileExistsError, match=r"b\.zip exists already"):
        write_samples(source_of(samples()), 2, tmp_path / "b.zip")
    (tmp_path / "c").mkdir()
    with pytest.raises(FileExistsError, match="c exists already"):
        write_samples(source_of(samples()), 2, tmp_path / "c.zip")
    with pytest.raises(ValueError, match=r"a\.png is not a folder, NAME\.npz or NAME\.zip"):
        write_samples(source_of(samples()), 2, tmp_path / "a.png")


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
    assert torch.equal(torch.from_numpy(np.load("a.npz")["arr_0"]).movedim(3, 1), made)
    command[2] = "b.npz"
    assert main([*command, "--seed", "3", "--batch", "4"]) == 0
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()
    assert main(["sample", "digits", "c.npz", "--steps", "2"]) == 1
    assert "digits is not a model to sample from" in capsys.readouterr().err
