"""Data sets, whole in memory, and the one place where pixels become numbers in [-1, 1]."""

import gzip
import hashlib
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tract.checks import check_choice, check_text


@dataclass(frozen=True)
class Data:
    """Samples to train on: uint8 images (N, C, H, W), or float points (N, D) as they are.

    labels: (N,) integers below num_classes, or None. flip: mirror half of the images drawn.
    """

    name: str
    samples: Tensor
    labels: Tensor | None = None
    flip: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample, (C, H, W) or (D,)."""
        return tuple(self.samples.shape[1:])

    @property
    def num_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    @property
    def sha256(self) -> str:
        """Hash of samples and labels, to tell one data set from another."""
        digest = hashlib.sha256(str((self.shape, self.samples.dtype)).encode())
        for tensor in (self.samples, self.labels):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "Data":
        labels = None if self.labels is None else self.labels.to(device)
        return Data(self.name, self.samples.to(device), labels, self.flip)

    def unlabelled(self) -> "Data":
        return Data(self.name, self.samples, None, self.flip)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw size samples with replacement: x0 (size, ...) in [-1, 1], and their labels.

        generator must live on the data's device. ValueError if size exceeds the data.
        """
        self.check_batch(size)
        device = self.samples.device
        index = torch.randint(len(self), (size,), generator=generator, device=device)
        x0 = to_unit(self.samples[index])
        if self.flip:
            mirrored = torch.rand(size, generator=generator, device=device) < 0.5
            x0 = torch.where(mirrored[:, None, None, None], x0.flip(-1), x0)
        return x0, None if self.labels is None else self.labels[index]

    def check_batch(self, size: int) -> None:
        """ValueError if a batch of this size would repeat the data."""
        if size > len(self):
            raise ValueError(
                f"batch is {size} but {self.name} has {len(self)} samples: use {len(self)} or less"
            )


def to_unit(samples: Tensor) -> Tensor:
    """uint8 pixels 0..255 to float32 in [-1, 1]; floating-point samples pass unchanged."""
    if samples.is_floating_point():
        return samples
    return samples.float() / 127.5 - 1


def to_uint8(x0: Tensor) -> Tensor:
    """Numbers in [-1, 1] to uint8 pixels, rounded to the nearest and clipped."""
    return ((x0 + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def load_data(name: str, data_dir: str | None = None) -> Data:
    """A data set by name: "digits", "fashion_mnist" or "cifar10".

    digits needs no files. data_dir holds the files of the others, as torchvision names them or,
    for Fashion-MNIST, as Debian's package dataset-fashion-mnist installs them. ValueError for an
    unknown name, FileNotFoundError for a missing folder or file.
    """
    check_choice("data", name, LOADERS)
    check_text("data_dir", data_dir or "")
    return LOADERS[name](data_dir)


def _digits(data_dir: str | None) -> Data:
    """1,797 handwritten digits of 8x8 pixels, shipped inside scikit-learn."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images) * (255 / 16)  # 17 grey levels
    return Data(
        "digits", images.round().to(torch.uint8)[:, None], torch.from_numpy(bunch.target).long()
    )


def _fashion_mnist(data_dir: str | None) -> Data:
    """60,000 pictures of clothes, 28x28 grey pixels padded with black to 32x32."""
    folder = _folder("fashion_mnist", data_dir)
    images = _read_idx(_existing(folder, "train-images-idx3-ubyte"))
    labels = _read_idx(_existing(folder, "train-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{folder} has images of shape {tuple(images.shape)} and labels of shape "
            f"{tuple(labels.shape)}, which do not belong together: fetch both files again"
        )
    images = torch.nn.functional.pad(images[:, None], (2, 2, 2, 2))
    return Data("fashion_mnist", images, labels.long(), flip=True)


def _cifar10(data_dir: str | None) -> Data:
    """50,000 photographs of 32x32 pixels in 10 classes, read by torchvision.

    Its files are pickles: torchvision compares their checksums before it opens them.
    """
    from torchvision.datasets import CIFAR10

    folder = _folder("cifar10", data_dir)
    try:
        images = CIFAR10(str(folder), train=True, download=False)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no CIFAR-10 in {folder}: put the folder cifar-10-batches-py there, for example with "
            f"torchvision.datasets.CIFAR10({str(folder)!r}, download=True)"
        ) from error
    pixels = torch.from_numpy(images.data).permute(0, 3, 1, 2).contiguous()
    return Data("cifar10", pixels, torch.tensor(images.targets), flip=True)


LOADERS = {"digits": _digits, "fashion_mnist": _fashion_mnist, "cifar10": _cifar10}


IDX_LIMIT = 2**28  # bytes; the largest file of Fashion-MNIST has 47,040,016


def _folder(name: str, data_dir: str | None) -> Path:
    if not data_dir:
        raise ValueError(f"data {name!r} is read from files: give their folder as data_dir")
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data_dir {str(data_dir)!r} is no folder: correct the path")
    return folder


def _existing(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder} has no file {name} or {name}.gz: is it the right folder?")


def _read_idx(path: Path) -> Tensor:
    """Bytes of an IDX file, packed or not; torchvision reads only the unpacked ones."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            content = file.read(IDX_LIMIT + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}): fetch it again") from error
    if len(content) > IDX_LIMIT:  # a few packed bytes could fill the memory
        raise ValueError(f"{path} holds more than {IDX_LIMIT:,} bytes: fetch the right file")
    if content[:3] != bytes([0, 0, 8]):  # 8: unsigned bytes
        raise ValueError(f"{path} is no IDX file of bytes: fetch it again")
    first = 4 + 4 * content[3]  # the number of dimensions, then their sizes
    sizes = struct.unpack(f">{content[3]}I", content[4:first]) if len(content) >= first else ()
    if len(content) != first + math.prod(sizes) or not math.prod(sizes):
        raise ValueError(f"{path} is cut short or damaged: fetch it again")
    return torch.frombuffer(bytearray(content[first:]), dtype=torch.uint8).reshape(sizes)
