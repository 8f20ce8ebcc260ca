"""Load data sets by name: digits, Fashion-MNIST, CIFAR-10, ImageNet-64, or a folder of images."""

import gzip
import math
import re
import struct
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch
from torch import Tensor

from tract.base.checks import check_choice, check_flag, check_text, check_whole, reading, shown
from tract.base.files import place
from tract.data import Data
from tract.datasets.arrays import read_images
from tract.datasets.cache import cached_pixels
from tract.datasets.images import Images
from tract.datasets.labels import labels_of, numbered, tell_classes

IDX_LIMIT = 2**28  # bytes; the largest file of Fashion-MNIST has 47,040,016


USUAL = {"split": "train", "image_size": 0, "grey": False, "flip": False}


def has_test_split(name: str) -> bool:
    """Whether a named data set has test images."""
    return name in LOADERS and _takes(name, "split")


def load_data(
    name: str,
    data_dir: str | None = None,
    *,
    split: str = "train",
    image_size: int = 0,
    grey: bool = False,
    flip: bool = False,
) -> Data:
    """Load a data set by name, one of LOADERS.

    data_dir: the folder with the files of fashion_mnist, as in Debian's dataset-fashion-mnist, or
    of cifar10, as torchvision names them; for imagenet64 a folder or zip of the training
    photographs, or of downsampled ImageNet's batches; for images a folder or zip of any images, or
    an .npz. split: "train" or "test", for fashion_mnist and cifar10. For images, image_size: pixels
    to resize to; grey: without colour; flip: mirror half of the images at random, which does not
    suit text. Converted images are cached, see `cache`.

    Raises ValueError for an unknown name or an option that the data set lacks, FileNotFoundError
    for a missing folder or file.
    """
    check_choice("data", name, LOADERS)
    check_text("data_dir", data_dir or "")
    check_choice("split", split, ("train", "test"))
    check_whole("image_size", image_size, 0)
    check_flag("grey", grey)
    check_flag("flip", flip)
    given = {"split": split, "image_size": image_size, "grey": grey, "flip": flip}
    for option, value in given.items():
        if value != USUAL[option] and not _takes(name, option):
            raise ValueError(
                f"{option} is {value!r}, but {name} has no such option: omit it, or use data "
                f"{' or '.join(other for other in LOADERS if _takes(other, option))}"
            )
    return LOADERS[name](data_dir, **{n: v for n, v in given.items() if _takes(name, n)})


def _takes(name: str, option: str) -> bool:
    return option in signature(LOADERS[name]).parameters


def _digits(data_dir: str | None) -> Data:
    """1,797 handwritten digits of 8x8 pixels, shipped inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images) * (255 / 16)  # 17 grey levels
    return Data(
        "digits", images.round().to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()
    )


def _fashion_mnist(data_dir: str | None, split: str = "train") -> Data:
    """60,000 images of clothes, 10,000 for testing, 28x28 grey pixels padded to 32x32."""
    data = _fashion_mnist_28(data_dir, split)
    samples = torch.nn.functional.pad(data.samples, (2, 2, 2, 2))
    return replace(data, name="fashion_mnist", samples=samples)


def _fashion_mnist_28(data_dir: str | None, split: str = "train") -> Data:
    """The same images without padding, 28x28, for networks that do not need powers of two."""
    folder, part = _folder("fashion_mnist", data_dir), {"train": "train", "test": "t10k"}[split]
    images = _read_idx(_existing(folder, f"{part}-images-idx3-ubyte"))
    labels = _read_idx(_existing(folder, f"{part}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder} has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}, which do not belong together: fetch both files again"
        )
    return Data("fashion_mnist_28", images[:, None], labels.long(), flip=True)


def _cifar10(data_dir: str | None, split: str = "train") -> Data:
    """50,000 photographs of 32x32 pixels in 10 classes, 10,000 for testing, read by torchvision.

    The files are pickles: torchvision verifies their checksums before it opens them.
    """
    from torchvision.datasets import CIFAR10

    folder = _folder("cifar10", data_dir)
    try:
        images = CIFAR10(str(folder), train=split == "train", download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no CIFAR-10 in {folder}: put the folder cifar-10-batches-py there, for example with "
            f"torchvision.datasets.CIFAR10({str(folder)!r}, download=True)"
        ) from error
    pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
    return Data("cifar10", pixels, torch.tensor(images.targets), flip=True)


def _imagenet64(data_dir: str | None) -> Data:
    """ImageNet's training photographs, all 1,281,167 or some, at 64x64 pixels with their classes.

    Smaller ones are enlarged, as in the literature, and counted.
    """
    source = place(_given("imagenet64", data_dir))
    if source.suffix == ".npz" or any(source.glob("*.npz")):
        return _downsampled(source)
    images = Images(source)
    labels, classes = labels_of(images)
    odd = [name for name in classes if not re.fullmatch(r"n\d{8}", name)]
    if images.listing is None and (odd or not classes):
        raise ValueError(
            f"{images.source} has no class folders such as n01440764 and n01443537, but "
            f"{odd[0] if odd else 'images alone'}: give the folder or zip of the photographs to "
            "train on, or use data 'images'"
        )
    return _converted("imagenet64", images, labels, 64, enlarge=True, flip=True)


def _images(
    data_dir: str | None, image_size: int = 0, grey: bool = False, flip: bool = False
) -> Data:
    """Any images, with labels from dataset.json, class folders, or arr_1 of an .npz."""
    if not image_size:
        raise ValueError("data 'images' are reduced to one size: give it as image_size")
    source = place(_given("images", data_dir))
    if source.suffix == ".npz":
        data = _arrays("images", [source], flip)
        if data.shape != (1 if grey else 3, image_size, image_size):
            raise ValueError(
                f"{source} has images of {data.shape} (channels, height, width), which are used as "
                "they are: give that as image_size and grey"
            )
        return data
    images = Images(source)
    labels, _ = labels_of(images)
    return _converted("images", images, labels, image_size, grey=grey, flip=flip)


def _converted(
    name: str, images: Images, labels: list[int], size: int, *, flip: bool, **options: bool
) -> Data:
    numbers = torch.tensor(labels) if labels else None
    samples, hashes = cached_pixels(images, size, numbers, **options)
    return Data(name, samples, numbers, flip, hashes)


def _downsampled(source: Path) -> Data:
    """Batches of downsampled ImageNet, from one .npz or a folder of them, in memory."""
    paths = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    data = _arrays("imagenet64", paths, flip=True)
    if data.shape != (3, 64, 64) or data.labels is None:
        raise ValueError(
            f"{source} has images of {data.shape}, not data and labels of 3x64x64 pixels: give the "
            "folder of downsampled ImageNet's training batches"
        )
    print("classes are in downsampled ImageNet's order")
    return data


def _arrays(name: str, paths: list[Path], flip: bool) -> Data:
    """Images of .npz files, in memory, with labels if all have them."""
    parts = [read_images(path) for path in paths]
    shapes = [tuple(samples.shape[1:]) for samples, _ in parts]
    if len(set(shapes)) > 1:
        raise ValueError(f"{paths[0].parent} has images of several shapes, {shapes}: give one")
    samples, labels = zip(*parts, strict=True)
    labels = None if any(part is None for part in labels) else torch.cat(labels)
    numbers = [] if labels is None else labels.tolist()
    tell_classes(numbers, numbered(numbers), f"{len(paths)} files")
    return Data(name, torch.cat(samples), labels, flip)


LOADERS = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "fashion_mnist_28": _fashion_mnist_28,
    "cifar10": _cifar10,
    "imagenet64": _imagenet64,
    "images": _images,
}


def _given(name: str, data_dir: str | None) -> str:
    if not data_dir:
        raise ValueError(f"data {name!r} is read from files: give their folder as data_dir")
    return data_dir


def _folder(name: str, data_dir: str | None) -> Path:
    folder = place(_given(name, data_dir))
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not a folder: correct the path")
    return folder


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz: correct the folder")


def _read_idx(path: Path) -> Tensor:
    """Bytes of an IDX file, packed or not; torchvision reads only unpacked ones."""
    opened = gzip.open if path.suffix == ".gz" else open
    with reading(path), opened(path, "rb") as file:
        kind, dimensions = struct.unpack(">3sB", file.read(4))
        sizes = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
        # A few packed bytes could fill the memory.
        content = file.read(min(math.prod(sizes), IDX_LIMIT) + 1)
        if kind != bytes([0, 0, 8]) or len(content) != math.prod(sizes) or not content:
            raise ValueError(f"not an IDX file of {shown(sizes)} unsigned bytes")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(sizes)
