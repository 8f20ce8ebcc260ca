"""Labels of image files: folders, splits, shards and EDM's dataset.json."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tract.data import Data
from tract.datasets.labels import folder_labels
from tract.datasets.load import load_data


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b/1.png", "a/2.png", "b/c/3.png"], ([1, 0, 1], ["a", "b"])),
        (["train/b/1.png", "train/a/2.png"], ([1, 0], ["a", "b"])),
        (["train/x/b/1.png", "train/x/a/2.png", "train/x/a/y/2.png"], ([1, 0, 0], ["a", "b"])),
        (["10/1.png", "9/1.png"], ([1, 0], ["9", "10"])),
        (["10/1.png", "9/1.png", "x/1.png"], ([0, 1, 2], ["10", "9", "x"])),
        (["train/1.png", "bus/1.png"], ([1, 0], ["bus", "train"])),  # a train is a vehicle
        (["00000/1.png", "00001/1.png"], ([0, 1], ["00000", "00001"])),
        (["a/1.png", "a/2.png"], ([], [])),
        (["a/1.png", "2.png"], ([], [])),
        (["a/b/1.png", "a/2.png"], ([], [])),
        (["1.png"], ([], [])),
    ],
)
def test_sub_folders_are_classes_if_all_images_lie_in_some(names, expected):
    assert folder_labels(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a/1.png", "val/a/1.png"], "train and val are splits, not classes: give one"),
        (["x/Train/a/1.png", "x/Test/a/1.png", "x/other/1.png"], "Test and Train are splits"),
        (["00000/img00000001.png", "00001/img00000002.png"], "00000, 00001 are parts of a data"),
        (["shard-0/a.png", "shard-1/b.png"], "shard-0, shard-1 are parts of a data set, not"),
    ],
)
def test_splits_and_shards_are_refused_as_classes(names, message):
    with pytest.raises(ValueError, match=message):
        folder_labels(names)


@pytest.fixture
def edm_zip(tmp_path, monkeypatch):
    """A function that writes EDM's zip of 12 images in two shards, with a dataset.json."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def write(listing):
        with zipfile.ZipFile(tmp_path / "edm.zip", "w") as archive:
            for i in range(12):
                content = io.BytesIO()
                Image.fromarray(np.full((8, 8, 3), 20 * i, np.uint8)).save(content, "png")
                archive.writestr(f"{i // 6:05d}/img{i:08d}.png", content.getvalue())
            archive.writestr("dataset.json", listing)
        return load_data("images", str(tmp_path / "edm.zip"), image_size=8)

    return write


LABELS = [[f"{i // 6:05d}/img{i:08d}.png", i % 5] for i in range(12)]


def test_edms_labels_are_read_from_its_file_and_said(edm_zip, capsys):
    data = edm_zip(json.dumps({"labels": LABELS}))
    assert data.labels.tolist() == [i % 5 for i in range(12)]
    shown = capsys.readouterr().out
    assert "5 classes in dataset.json: 0 (3), 1 (3), 2 (2), 3 (2), 4 (2)" in shown
    assert "skipped" not in shown


def test_edms_data_without_labels_have_none(edm_zip):
    assert edm_zip(json.dumps({"labels": None})).labels is None


def test_labels_that_change_are_other_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(folder / name)
    hashes = set()
    for labels in ([["a.png", 0], ["b.png", 1]], [["a.png", 1], ["b.png", 0]], None):
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        data = load_data("images", str(folder), image_size=8)
        hashes.add(data.sha256)
        assert data.sha256 == Data("same", data.samples.clone(), data.labels).sha256
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        ("no json", "dataset.json lists no labels .*: restore or remove"),
        ("[" * 10**5, "dataset.json lists no labels .*: restore or remove"),
        (json.dumps({"labels": 3}), "dataset.json lists no labels"),
        (json.dumps({"labels": LABELS[1:]}), "has None as the label of 00000/img00000000.png"),
        (json.dumps({"labels": [[n, 0.5] for n, _ in LABELS]}), "has 0.5 as the label of 00000/"),
        (json.dumps({"labels": [[n, -1] for n, _ in LABELS]}), "has -1 as the label"),
    ],
)
def test_a_damaged_list_of_labels_is_refused(edm_zip, listing, message):
    with pytest.raises(ValueError, match=message):
        edm_zip(listing)


def test_numbered_folders_have_their_numbers_as_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    for number in range(12):
        (tmp_path / "set" / str(number)).mkdir(parents=True)
        pixels = np.full((8, 8, 3), 20 * number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / str(number) / "a.png")
    for _ in range(2):  # said each time, converted once
        data = load_data("images", str(tmp_path / "set"), image_size=8)
        assert (data.samples[:, 0, 0, 0] // 20).tolist() == data.labels.tolist()
        assert "12 classes in folders: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1), ..." in (
            capsys.readouterr().out
        )
