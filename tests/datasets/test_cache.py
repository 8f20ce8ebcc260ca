"""Image files kept as pixels: made once, mapped, and made again when anything changed."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tract.data import Data
from tract.datasets import cache as module
from tract.datasets.cache import cache_folder, cached_pixels
from tract.datasets.images import Images

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tract"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """Sizes of all images that were decoded for the cache."""
    sizes, real = [], module.reduced
    monkeypatch.setattr(
        module, "reduced", lambda image, *a, **o: sizes.append(image.size) or real(image, *a, **o)
    )
    return sizes


def kept(home):
    return [path.name for path in home.iterdir() if not path.name.endswith(".lock")]


def test_all_images_are_kept_as_one_array(folder, home):
    samples, _ = cached_pixels(Images(folder), 8)
    assert samples.dtype == torch.uint8
    assert np.array_equal(samples.permute(0, 2, 3, 1), PIXELS)
    (name,) = kept(home)
    assert name.startswith("pictures-8-")
    assert int.from_bytes((home / name).read_bytes()[:8], "little") % 8 == 0  # aligned pixels
    tensors = load_file(home / name)  # the library's own reader
    assert list(tensors) == ["samples"]
    assert torch.equal(tensors["samples"], samples)


def test_grey_images_have_one_channel(folder):
    samples, _ = cached_pixels(Images(folder), 4, grey=True)
    assert samples.shape == (5, 1, 4, 4)
    means = (PIXELS @ [0.299, 0.587, 0.114]).reshape(5, 4, 2, 4, 2).mean((2, 4))
    assert np.abs(samples[:, 0].numpy() - means).max() <= 1


def test_the_second_time_nothing_is_decoded(folder, decoded, capsys):
    first, hashes = cached_pixels(Images(folder), 8)
    assert len(decoded) == 5
    shown = capsys.readouterr().out
    assert "5 images cached as pixels in" in shown
    assert "skipped" not in shown
    assert "enlarged" not in shown
    again, same = cached_pixels(Images(folder), 8)
    assert len(decoded) == 5
    assert torch.equal(first, again)
    assert same == hashes
    assert capsys.readouterr().out == ""


def test_the_hashes_are_those_of_data_in_memory(folder):
    labels = torch.arange(5)
    samples, hashes = cached_pixels(Images(folder), 8, labels)
    plain = Data("d", samples.clone(), labels)
    assert hashes == (plain.unlabelled().sha256, plain.sha256)
    assert hashes[0] != hashes[1]


def test_samples_lie_in_the_file_and_not_in_memory(folder, home):
    samples, _ = cached_pixels(Images(folder), 8)
    (name,) = kept(home)
    if Path("/proc/self/maps").exists():
        assert str(home / name) in Path("/proc/self/maps").read_text()
    before = (home / name).read_bytes()
    samples[0] = 0  # of this process alone
    assert (home / name).read_bytes() == before


def test_other_sizes_and_kinds_are_files_of_their_own(folder, home, decoded):
    for _ in range(2):
        cached_pixels(Images(folder), 8)
        cached_pixels(Images(folder), 4)
        cached_pixels(Images(folder), 8, grey=True)
        cached_pixels(Images(folder), 8, enlarge=True)
    assert len(decoded) == 4 * 5
    assert len(kept(home)) == 4


def rewritten(folder):
    Image.fromarray(PIXELS[0, ::-1].copy()).save(folder / "3.png")
    os.utime(folder / "3.png", (10**9, 10**9))


CHANGES = {
    "a file": (rewritten, 5),
    "a name": (lambda folder: (folder / "3.png").rename(folder / "x.png"), 5),
    "a file more": (lambda folder: Image.fromarray(PIXELS[0]).save(folder / "x.png"), 6),
    "a file less": (lambda folder: (folder / "0.png").unlink(), 4),
}


@pytest.mark.parametrize("change", CHANGES)
def test_when_the_source_changes_its_file_is_made_again(folder, home, decoded, change):
    _, before = cached_pixels(Images(folder), 8)
    decoded.clear()
    alter, count = CHANGES[change]
    alter(folder)
    samples, after = cached_pixels(Images(folder), 8)
    assert len(decoded) == len(samples) == count
    files = sorted(folder.iterdir())
    assert np.array_equal(samples.permute(0, 2, 3, 1), [np.asarray(Image.open(f)) for f in files])
    assert after != before
    assert len(kept(home)) == 1


def test_another_recipe_makes_it_again(folder, home, decoded, monkeypatch):
    cached_pixels(Images(folder), 8)
    monkeypatch.setattr(module, "RECIPE", "next")
    cached_pixels(Images(folder), 8)
    assert len(decoded) == 10
    assert len(kept(home)) == 1


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


DAMAGE = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "of something else": lambda path: path.write_bytes(b"x" * 5000),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "flipped in the header": lambda path: flip(path, 30),
    "flipped in a pixel": lambda path: flip(path, -7),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_trusted(folder, home, decoded, damage):
    cached_pixels(Images(folder), 8)
    (name,) = kept(home)
    DAMAGE[damage](home / name)
    samples, _ = cached_pixels(Images(folder), 8)
    assert len(decoded) == 10
    assert np.array_equal(samples.permute(0, 2, 3, 1), PIXELS)
    cached_pixels(Images(folder), 8)
    assert len(decoded) == 10


def test_names_may_be_of_any_bytes(folder, decoded):
    other = os.fsdecode(os.fsencode(folder) + b"\xe9")
    os.rename(folder, other)  # noqa: PTH104
    os.rename(f"{other}/3.png", os.fsdecode(b"%s/\xe9.png" % os.fsencode(other)))  # noqa: PTH104
    for _ in range(2):
        samples, _ = cached_pixels(Images(other), 8)
    assert np.array_equal(samples[4].permute(1, 2, 0), PIXELS[3])
    assert len(decoded) == 5


def test_an_interrupted_conversion_leaves_nothing(folder, home, monkeypatch):
    def interrupt(image, *args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "reduced", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cached_pixels(Images(folder), 8)
    assert kept(home) == []
    cached_pixels(Images(folder), 8)
    assert len(kept(home)) == 1


def test_bad_images_are_refused_and_nothing_is_left(folder, home):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:-60])
    Image.fromarray(PIXELS[0, :7]).save(folder / "9.png")
    message = (
        r"^2 of the 6 images read from .*pictures are refused: 2.png \(.*\), 9.png \(8x7 "
        r"pixels: use a size of 7 or less\); remove or replace them"
    )
    with pytest.raises(ValueError, match=message):
        cached_pixels(Images(folder), 8)
    assert kept(home) == []


def test_images_that_were_enlarged_are_counted(folder, capsys):
    Image.new("RGB", (5, 20), (9, 9, 9)).save(folder / "9.png")
    samples, _ = cached_pixels(Images(folder), 8, enlarge=True)
    assert (samples[5] == 9).all()
    assert "\n1 images smaller than 8 pixels were enlarged\n" in capsys.readouterr().out


def test_other_files_in_the_folder_are_counted(folder, capsys):
    (folder / "labels.csv").write_text("1,2,3")
    cached_pixels(Images(folder), 8)
    assert "1 files skipped, not images: labels.csv\n" in capsys.readouterr().out


def test_what_a_killed_process_left_is_removed(folder, home):
    cached_pixels(Images(folder), 8)
    (name,) = kept(home)
    (home / name).unlink()
    (home / f".{name}.12345.tmp").write_bytes(b"half")
    cached_pixels(Images(folder), 8)
    assert kept(home) == [name]


def test_two_processes_make_it_once(folder, decoded):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(cached_pixels(Images(folder), 8)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(decoded) == 5
    assert all(torch.equal(samples, results[0][0]) for samples, _ in results)


def test_too_small_a_disk_is_refused_before_anything_is_decoded(folder, home, decoded, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=959))
    message = "has 959 bytes free, but .*pictures needs 960: free space, or set XDG_CACHE_HOME"
    with pytest.raises(OSError, match=message):
        cached_pixels(Images(folder), 8)
    assert decoded == []
    assert kept(home) == []


def test_a_folder_that_cannot_be_written_to_is_refused(folder, tmp_path, monkeypatch, decoded):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OSError, match="cannot write to .*file/tract .*: set XDG_CACHE_HOME to"):
        cached_pixels(Images(folder), 8)
    assert decoded == []


def test_without_a_folder_of_its_own_the_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert cache_folder() == tmp_path / ".cache" / "tract"
