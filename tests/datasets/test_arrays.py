"""Images in .npz files, and files that are none."""

import zipfile

import numpy as np
import pytest

from tract.datasets.arrays import read_images
from tract.datasets.load import load_data

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_images_are_read_in_either_order_of_axes(tmp_path, save):
    for array in (IMAGES, IMAGES.transpose(0, 3, 1, 2), np.asfortranarray(IMAGES)):
        save(tmp_path / "a.npz", array)
        images, labels = read_images(tmp_path / "a.npz")
        assert np.array_equal(images.permute(0, 2, 3, 1), IMAGES)
        assert labels is None


def test_batches_of_downsampled_imagenet_are_data(tmp_path):
    planes = np.random.default_rng(0).integers(0, 256, (4, 3 * 64 * 64), dtype=np.uint8)
    for i in range(2):
        part = {"data": planes[2 * i : 2 * i + 2], "labels": np.array([1, 1000 - i])}
        np.savez(tmp_path / f"train_data_batch_{i}.npz", mean=planes[0], **part)
    data = load_data("imagenet64", str(tmp_path))
    assert np.array_equal(data.samples.reshape(4, -1), planes)
    assert data.labels.tolist() == [0, 999, 0, 998]
    np.savez(tmp_path / "train_data_batch_2.npz", IMAGES)
    with pytest.raises(ValueError, match=r"has images of several shapes, .*\(3, 4, 4\)\]: give"):
        load_data("imagenet64", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"batch_2.npz has images of \(3, 4, 4\), not data and lab"
    ):
        load_data("imagenet64", str(tmp_path / "train_data_batch_2.npz"))


def test_images_of_an_npz_are_data_as_they_are(tmp_path, capsys):
    path = str(tmp_path / "a.npz")
    np.savez(path, IMAGES, np.array([2, 0, 2, 0, 2]))
    data = load_data("images", path, image_size=4, flip=True)
    assert np.array_equal(data.samples.permute(0, 2, 3, 1), IMAGES)
    assert (data.labels.tolist(), data.flip) == ([2, 0, 2, 0, 2], True)
    assert "2 classes in 1 files: 0 (2), 2 (3)" in capsys.readouterr().out
    for options in ({"image_size": 8}, {"image_size": 4, "grey": True}):
        with pytest.raises(ValueError, match=r"a.npz has images of \(3, 4, 4\) .*: give that as"):
            load_data("images", path, **options)
    np.savez(path, IMAGES, IMAGES)
    assert load_data("images", path, image_size=4).labels is None
    np.savez(path, IMAGES, np.array([-1, 0, 2, 0, 2]))
    with pytest.raises(ValueError, match="has the label -1: use 0 or more"):
        load_data("images", path, image_size=4)


def claiming(shape):
    return f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()


def write(path, member, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, content)


@pytest.mark.parametrize("header", [claiming("(640000000000,)"), b"{'descr': (((", b"\xff" * 20])
def test_a_header_that_claims_what_is_not_there_is_refused(tmp_path, header):
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    write(tmp_path / "a.npz", "arr_0.npy", start + bytes(8))
    with pytest.raises(ValueError, match=r"a.npz is damaged .*: save it by numpy.savez"):
        read_images(tmp_path / "a.npz")


def test_what_is_no_such_file_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.npz is damaged"):
        read_images(path)
    write(path, "a.txt", b"hello")
    with pytest.raises(ValueError, match=r"a.npz is damaged or has no array"):
        read_images(path)
    np.savez(path, np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz is damaged or has no array of numbers"):
        read_images(path)
    np.savez(path, IMAGES)
    path.write_bytes(path.read_bytes()[200:])  # its directory then begins before the file
    with pytest.raises(ValueError, match=r"a.npz is damaged"):
        read_images(path)
    np.savez(path, IMAGES.astype(float))
    with pytest.raises(ValueError, match=r"a.npz has float64 of shape .*: save uint8 images"):
        read_images(path)
