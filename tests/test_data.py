"""Data sets: pixels and numbers, draws, and files that are there or not."""

import gzip

import numpy as np
import pytest
import torch
import torchvision

from tract.data import Data, load_data, to_uint8, to_unit

PIXELS = torch.arange(256, dtype=torch.uint8).reshape(16, 1, 4, 4)


def test_pixels_span_minus_one_to_one_evenly():
    x0 = to_unit(PIXELS).flatten()
    assert (x0[0], x0[-1]) == (-1, 1)
    # Even steps of 2 / 255, each rounded near 1.
    assert torch.allclose(x0.diff(), torch.full((255,), 2 / 255), rtol=0, atol=2**-23)


def test_every_pixel_survives_the_round_trip():
    assert torch.equal(to_uint8(to_unit(PIXELS)), PIXELS)


def test_numbers_outside_the_range_are_clipped_and_between_pixels_rounded():
    x0 = torch.tensor([-1.7, 1.2, -1 + 2.4 / 255 * 1, -1 + 2.6 / 255 * 1, -1 + 3.2 / 255])
    assert to_uint8(x0).tolist() == [0, 255, 1, 1, 2]


def test_points_pass_as_they_are():
    points = torch.tensor([[3.0, -7.0]])
    assert to_unit(points) is points


def test_digits_are_1797_pictures_of_8x8_in_ten_classes():
    data = load_data("digits")
    assert data.samples.shape == (1797, 1, 8, 8)
    assert data.samples.dtype == torch.uint8
    assert data.shape == (1, 8, 8)
    assert data.labels.unique().tolist() == list(range(10))
    assert data.num_classes == 10


def test_digits_use_the_whole_range_of_pixels_in_17_levels():
    levels = load_data("digits").samples.unique().tolist()
    assert levels == [round(i * 255 / 16) for i in range(17)]


def numbered(count=50, flip=False):
    """Points whose first coordinate and label say which they are."""
    index = torch.arange(count)
    return Data("numbered", index[:, None].float(), index, flip)


def test_samples_are_drawn_with_their_own_labels(generator):
    x0, labels = numbered().batch(20, generator)
    assert torch.equal(x0[:, 0].long(), labels)


def test_every_sample_is_drawn_in_the_long_run(generator):
    data = numbered(10)
    drawn = [data.batch(10, generator)[1] for _ in range(50)]
    # Some sample left out of 500 draws has probability 10 * 0.9^500 = 1e-22.
    assert torch.cat(drawn).unique().tolist() == list(range(10))


def test_draws_follow_the_generator_alone():
    torch.manual_seed(1)
    first, _ = numbered().batch(8, torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    again, _ = numbered().batch(8, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)


def test_flipping_mirrors_about_half_of_the_images_left_to_right(generator):
    image = torch.tensor([[0, 255], [100, 200]], dtype=torch.uint8)
    data = Data("one", image.expand(400, 1, 2, 2), flip=True)
    x0, _ = data.batch(400, generator)
    straight, mirrored = to_unit(image), to_unit(image).flip(1)
    is_straight = (x0 == straight).all((1, 2, 3))
    assert bool((is_straight | (x0 == mirrored).all((1, 2, 3))).all())
    # 400 fair coins: five standard deviations of 10 around 200.
    assert 150 < is_straight.sum() < 250


def test_without_flipping_images_stay_as_they_are(generator):
    data = Data("pixels", PIXELS[:1].expand(16, 1, 4, 4))
    assert (data.batch(16, generator)[0] == to_unit(PIXELS[0])).all()


def test_unlabelled_data_gives_no_labels_and_keeps_the_rest(generator):
    data = Data("d", PIXELS, torch.arange(16), flip=True).unlabelled()
    assert data.num_classes == 0
    assert data.batch(2, generator)[1] is None
    assert data.flip
    assert data.samples is PIXELS


def test_data_move_to_a_device_whole():
    moved = Data("d", PIXELS, torch.arange(16), flip=True).to("meta")
    assert moved.samples.is_meta
    assert moved.labels.is_meta
    assert (moved.name, moved.flip) == ("d", True)


def test_the_hash_tells_samples_labels_and_shapes_apart():
    same = Data("a", PIXELS.clone(), torch.arange(16)).sha256
    assert Data("b", PIXELS, torch.arange(16)).sha256 == same
    others = [
        Data("a", PIXELS, torch.arange(16).flip(0)),
        Data("a", PIXELS, None),
        Data("a", PIXELS.flip(0), torch.arange(16)),
        Data("a", PIXELS.reshape(16, 1, 2, 8), torch.arange(16)),
    ]
    assert len({same, *(data.sha256 for data in others)}) == 5


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(generator):
    message = "batch is 51 but numbered has 50 samples: use 50 or less"
    with pytest.raises(ValueError, match=message):
        numbered().batch(51, generator)
    numbered().check_batch(50)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="data is 'mnist': choose one of .*'digits'"):
        load_data("mnist")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
@pytest.mark.parametrize("data_dir", [None, ""])
def test_data_in_files_needs_their_folder(name, data_dir):
    with pytest.raises(ValueError, match=f"'{name}' is read from files: give .* data_dir"):
        load_data(name, data_dir)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_a_missing_folder_is_refused_with_its_path(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir '.*/nowhere' is no folder: correct"):
        load_data(name, str(tmp_path / "nowhere"))


def test_a_missing_file_is_refused_with_its_names(tmp_path):
    message = r"no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz: is it the right"
    with pytest.raises(FileNotFoundError, match=message):
        load_data("fashion_mnist", str(tmp_path))


def test_a_folder_without_cifar10_is_refused_with_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in .*cifar-10-batches-py") as refusal:
        load_data("cifar10", str(tmp_path))
    assert str(tmp_path) in str(refusal.value)


def idx(tensor):
    """The bytes of an IDX file: type 8 is unsigned byte, then big-endian sizes, then the data."""
    sizes = b"".join(n.to_bytes(4, "big") for n in tensor.shape)
    return bytes([0, 0, 8, tensor.ndim]) + sizes + tensor.numpy().tobytes()


@pytest.fixture(params=["", ".gz"])
def clothes(request, tmp_path, generator):
    """A folder of two pictures of clothes, and what is in it."""
    images = torch.randint(256, (2, 28, 28), generator=generator).to(torch.uint8)
    labels = torch.tensor([3, 9], dtype=torch.uint8)
    for name, tensor in [("images-idx3", images), ("labels-idx1", labels)]:
        content = gzip.compress(idx(tensor)) if request.param else idx(tensor)
        (tmp_path / f"train-{name}-ubyte{request.param}").write_bytes(content)
    return tmp_path, images


def test_fashion_mnist_is_read_plain_or_packed_and_padded_with_black(clothes):
    folder, images = clothes
    data = load_data("fashion_mnist", str(folder))
    assert data.samples.shape == (2, 1, 32, 32)
    assert torch.equal(data.samples[:, 0, 2:30, 2:30], images)
    assert data.samples.sum() == images.sum()
    assert data.labels.tolist() == [3, 9]
    assert data.flip


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"<html>not found</html>", "no IDX file"), (idx(PIXELS[:, 0])[:-1], "cut short or damaged")],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path, content, problem):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is {problem}.*: fetch it again"):
        load_data("fashion_mnist", str(tmp_path))


def test_cifar10_is_read_as_torchvision_leaves_it(tmp_path, monkeypatch):
    class Two:
        data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
        targets = (4, 9)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *args, **options: Two)
    data = load_data("cifar10", str(tmp_path))
    assert data.samples.shape == (2, 3, 32, 32)
    assert data.samples[1, 2, 5, 7].item() == Two.data[1, 5, 7, 2]
    assert data.labels.tolist() == [4, 9]
    assert data.flip
