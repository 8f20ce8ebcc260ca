"""Read arrays from .npz files without unpickling; invalid files raise a one-line error."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tract.base.checks import reading, shown

# The problem of an invalid file, and the remedy.
NO_ARRAYS = (
    "is damaged or has no array of numbers arr_0",
    "save it by numpy.savez(path, images)",
)
READ_HEADER = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def array_names(path: str | Path) -> list[str]:
    """Return the names of the arrays in an .npz file; raises ValueError if it is not one."""
    with reading(path, *NO_ARRAYS), zipfile.ZipFile(path) as archive:
        return [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]


def read_arrays(path: str | Path, names: Sequence[str]) -> list[np.ndarray]:
    """Read numeric arrays by name from an .npz file; raises ValueError if one is invalid.

    Shapes are compared with the file's size before memory is allocated.
    """
    with reading(path, *NO_ARRAYS), zipfile.ZipFile(path) as archive:
        return [_read(archive, f"{name}.npy") for name in names]


def read_images(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read uint8 images (N, C, H, W) from an .npz file, and labels (N,) or None.

    Images are arr_0 or the only array, as (N, H, W, C) or (N, C, H, W), and arr_1 their labels, if
    any. Downsampled ImageNet's files have data (N, C H W) and labels that count from 1.
    """
    names, downsampled = array_names(path), ["data", "labels"]
    first = 1 if set(downsampled) <= set(names) else 0
    wanted = downsampled if first else [n for n in ("arr_0", "arr_1") if n in names]
    array, *others = read_arrays(path, names if len(names) == 1 else wanted or ["arr_0"])
    if array.ndim == 2 and first and array.shape[1] == 3 * math.isqrt(array.shape[1] // 3) ** 2:
        array = array.reshape(len(array), 3, math.isqrt(array.shape[1] // 3), -1)
    if array.ndim == 4 and array.shape[3] in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    images = _checked(path, array)
    labels = others[0] if others else np.empty(0)
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        return images, None
    if labels.min() < first:
        raise ValueError(f"{path} has the label {labels.min()}: use {first} or more")
    return images, torch.from_numpy(labels.astype(np.int64) - first)


def _read(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(name)
    with archive.open(info) as file:
        shape, fortran, dtype = READ_HEADER[np.lib.format.read_magic(file)](file)
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"{name} is not {shown(shape)} of {dtype}")
        array = np.frombuffer(file.read(), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def _checked(path: str | Path, array: np.ndarray) -> Tensor:
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] not in (1, 3) or not array.size:
        raise ValueError(
            f"{path} has {array.dtype} of shape {array.shape}: save uint8 images (N, H, W, C)"
        )
    return torch.from_numpy(np.array(array))  # (N, C, H, W), a copy
