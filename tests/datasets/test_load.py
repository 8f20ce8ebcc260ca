"""Data sets: pixels and numbers, draws, and files that are there or not."""

import numpy as np
import pytest
import torch
import torchvision
from helpers import idx, write_clothes
from PIL import Image

from tract.data import Data, to_uint8, to_unit
from tract.datasets.load import load_data

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


def test_hashes_that_are_known_are_not_computed():
    data = Data("a", PIXELS, torch.arange(16), hashes=("without", "with labels")).to("cpu")
    assert (data.sha256, data.unlabelled().sha256) == ("with labels", "without")


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers(generator):
    message = "batch_size is 51 but numbered has 50 samples: use 50 or less"
    with pytest.raises(ValueError, match=message):
        numbered().batch(51, generator)
    numbered().check_batch(50)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="data is 'mnist': choose one of .*'digits'"):
        load_data("mnist")


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "imagenet64", "images"])
@pytest.mark.parametrize("data_dir", [None, ""])
def test_data_in_files_needs_their_folder(name, data_dir):
    with pytest.raises(ValueError, match=f"'{name}' is read from files: give .* data_dir"):
        load_data(name, data_dir, image_size=8 * (name == "images"))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_a_missing_folder_is_refused_with_its_path(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data_dir '.*/nowhere' is not a folder: correct"):
        load_data(name, str(tmp_path / "nowhere"))


def test_a_missing_file_is_refused_with_its_names(tmp_path):
    message = r"no file train-images-idx3-ubyte or train-images-idx3-ubyte.gz: correct the"
    with pytest.raises(FileNotFoundError, match=message):
        load_data("fashion_mnist", str(tmp_path))


def test_a_folder_without_cifar10_is_refused_with_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no CIFAR-10 in .*cifar-10-batches-py") as refusal:
        load_data("cifar10", str(tmp_path))
    assert str(tmp_path) in str(refusal.value)


@pytest.fixture(params=["", ".gz"])
def clothes(request, tmp_path, generator):
    """A folder of two pictures of clothes to train on and two to test, and what is in it."""
    parts = torch.randint(256, (2, 2, 28, 28), generator=generator).to(torch.uint8)
    labels = torch.tensor([3, 9], dtype=torch.uint8)
    pairs = {part: (images, labels) for part, images in zip(["train", "t10k"], parts, strict=True)}
    write_clothes(tmp_path, packed=bool(request.param), **pairs)
    return tmp_path, dict(zip(["train", "test"], parts, strict=True))


@pytest.mark.parametrize("split", ["train", "test"])
def test_fashion_mnist_is_read_plain_or_packed_and_padded_with_black(clothes, split):
    folder, parts = clothes
    data, images = load_data("fashion_mnist", str(folder), split=split), parts[split]
    assert data.samples.shape == (2, 1, 32, 32)
    assert torch.equal(data.samples[:, 0, 2:30, 2:30], images)
    assert data.samples.sum() == images.sum()
    assert data.labels.tolist() == [3, 9]
    assert data.flip
    plain = load_data("fashion_mnist_28", str(folder), split=split)
    assert torch.equal(plain.samples[:, 0], images)


@pytest.mark.parametrize(
    "content",
    [b"<html>not found</html>", idx(PIXELS[:, 0])[:-1], idx(PIXELS[:, 0]) + b"0", idx(PIXELS)[1:]],
)
def test_a_damaged_file_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is damaged .*: fetch it again"):
        load_data("fashion_mnist", str(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_is_read_as_torchvision_leaves_it(tmp_path, monkeypatch, split):
    class Two:
        data = np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3)
        targets = (4, 9)

    def cifar10(root, *, train, download):
        assert (root, train, download) == (str(tmp_path), split == "train", False)
        return Two

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    data = load_data("cifar10", str(tmp_path), split=split)
    assert data.samples.shape == (2, 3, 32, 32)
    assert data.samples[1, 2, 5, 7].item() == Two.data[1, 5, 7, 2]
    assert data.labels.tolist() == [4, 9]
    assert data.flip


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    """A folder with three photographs of two of ImageNet's classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    names = ["n01440764/b.JPEG", "n01440764/a.JPEG", "n15075141/a.JPEG"]
    for grey, name in enumerate(names):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (130, 128), (100 * grey,) * 3).save(path, quality=100)
    return tmp_path / "train"


def test_imagenet64_has_photographs_at_64_pixels_with_their_classes(photographs):
    data = load_data("imagenet64", str(photographs))
    assert (data.name, data.shape, data.num_classes) == ("imagenet64", (3, 64, 64), 2)
    assert data.samples[:, 1, 5, 5].tolist() == [100, 0, 200]  # sorted by name
    assert data.labels.tolist() == [0, 0, 1]
    assert data.flip
    # Labels, and hashes, as of the same data in memory.
    plain = Data("d", data.samples.clone(), data.labels)
    assert data.sha256 == plain.sha256
    assert data.hashes == (plain.unlabelled().sha256, plain.sha256)  # known without reading
    assert data.to("cpu").unlabelled().sha256 == plain.unlabelled().sha256


def test_imagenet64_enlarges_what_is_smaller(photographs, capsys):
    Image.new("RGB", (20, 30)).save(photographs / "n15075141" / "b.JPEG")
    assert len(load_data("imagenet64", str(photographs))) == 4
    assert "1 images smaller than 64 pixels were enlarged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "odd"), [("val/n01440764/c.JPEG", "val"), ("c.JPEG", "images alone")]
)
def test_imagenet64_is_refused_without_its_class_folders(photographs, other, odd):
    (photographs / other).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64)).save(photographs / other)
    with pytest.raises(ValueError, match=f"train has no class folders .*, but {odd}: give the"):
        load_data("imagenet64", str(photographs))


def test_images_are_any_folder_at_any_size(photographs):
    data = load_data("images", str(photographs), image_size=16)
    assert (data.name, data.shape, data.labels.tolist()) == ("images", (3, 16, 16), [0, 0, 1])
    assert not data.flip
    data = load_data("images", str(photographs), image_size=16, grey=True, flip=True)
    assert data.shape == (1, 16, 16)
    assert data.flip
    data = load_data("images", str(photographs / "n01440764"), image_size=128)
    assert data.samples[:, 0, 7, 7].tolist() == [100, 0]
    assert data.labels is None
    assert data.sha256 == Data("d", data.samples.clone()).sha256


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("images", {}, "data 'images' are reduced to one size: give it as image_size"),
        ("images", {"image_size": 129}, "3 of the 3 .*a.JPEG .130x128 pixels: use a size of 128"),
        ("images", {"image_size": -1}, "image_size is -1: use 0 or more"),
        ("images", {"image_size": 8, "grey": "no"}, "grey is 'no': use True or False"),
        ("images", {"image_size": 8, "flip": 1}, "flip is 1: use True or False"),
        ("images", {"image_size": 8, "split": "test"},
         "split is 'test', but images has no such option: omit it, or use data "
         "fashion_mnist or fashion_mnist_28 or cifar10"),
        ("imagenet64", {"split": "test"}, "split is 'test', but imagenet64 has no such option"),
        ("imagenet64", {"grey": True}, "grey is True, but imagenet64 has no such option"),
        ("digits", {"split": "test"}, "split is 'test', but digits has no such option"),
        ("digits", {"image_size": 16},
         "image_size is 16, but digits has no such option: omit it, or use data images"),
        ("cifar10", {"flip": True}, "flip is True, but cifar10 has no such option"),
        ("cifar10", {"split": "val"}, r"split is 'val': choose one of \['train', 'test'\]"),
    ],
)  # fmt: skip
def test_choices_that_a_data_set_has_not_are_refused(photographs, name, options, message):
    with pytest.raises(ValueError, match=message):
        load_data(name, str(photographs), **options)


def test_data_too_large_for_a_gpu_are_refused_with_both_sizes(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * 10**8, 10**10))
    images = torch.empty(1, dtype=torch.uint8).expand(100_000, 3, 64, 64)
    with pytest.raises(RuntimeError, match="large takes 1.2 GB and the GPU has 0.2 GB free: end"):
        Data("large", images).to("cuda")
