"""Cache of decoded image files: one array, memory-mapped on later use.

It is a safetensors file with one tensor, `samples`, and what that was made from beside it.
"""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import struct
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tract.base.files import TEMPORARY, only_writer, replacing
from tract.data import start_hash
from tract.datasets.images import Images, image_batches, reduced

RECIPE = "2"  # another number whenever the same files come to give other pixels
UNKNOWN = "0" * 64  # stands for a hash until it is computed


def cache_folder() -> Path:
    """Where files go that can be made again: $XDG_CACHE_HOME/tract, or else ~/.cache/tract."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tract"


def cached_pixels(
    images: Images,
    size: int,
    labels: Tensor | None = None,
    *,
    grey: bool = False,
    enlarge: bool = False,
) -> tuple[Tensor, tuple[str, str]]:
    """All images as uint8 (N, C, size, size), and `Data.sha256` of them without and with labels.

    They are converted as by `images.reduced`, unless a file of them is there and neither it nor
    the files' names, sizes and times have changed since. They stay on disk until looked at.
    ValueError for bad images, OSError if the file cannot be written; nothing is left of it then.
    """
    source = images.source.resolve()
    shape = (len(images), 1 if grey else 3, size, size)
    about = {"source": repr(str(source)), "kind": str(shape[1:]), "enlarge": str(enlarge)}
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]
    name = re.sub(r"\W+", "-", source.name)[:40]
    path = cache_folder() / f"{name}-{size}-{key}.safetensors"
    about |= {"recipe": RECIPE, "files": images.stamp(), "labels": _labels_hash(labels)}
    found = _read(path, about)
    if found is None:
        instead = "set XDG_CACHE_HOME to another folder"
        with only_writer(path.parent, path.name, wait=True, instead=instead):
            found = _read(path, about)  # another process may have made it meanwhile
            if found is None:
                _build(path, images, labels, about, shape, enlarge)
                found = _read(path, about)
    return found


def _labels_hash(labels: Tensor | None) -> str:
    """Of labels, which a dataset.json can change while the images stay as they are."""
    return "" if labels is None else hashlib.sha256(labels.numpy()).hexdigest()


def _read(path: Path, about: dict[str, str]) -> tuple[Tensor, tuple[str, str]] | None:
    """Pixels and hashes of a file that is whole, untouched and about these images, or None."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:  # checks sizes, maps the rest
            samples, found = file.get_tensor("samples"), file.metadata() or {}
    except (SafetensorError, RuntimeError, TypeError, OSError):
        return None
    expected = about | {"time": str(path.stat().st_mtime_ns)}
    if not expected.items() <= found.items():
        return None
    return samples, (found["sha256"], found["sha256_labelled"])


def _build(
    path: Path,
    images: Images,
    labels: Tensor | None,
    about: dict[str, str],
    shape: tuple[int, ...],
    enlarge: bool,
) -> None:
    """Convert all images into the file, a batch at a time."""
    needed, size, enlarged = math.prod(shape), shape[-1], []
    _make_room(path, needed, images.source)

    def make(image: Image.Image) -> np.ndarray:
        pixels = reduced(image, size, enlarge=enlarge)
        if min(image.size) < size:
            enlarged.append(image.size)
        return pixels

    # A file is known to be untouched by its time, which is set to one that is written in it: even
    # seconds, as every file system can keep.
    when = int(time.time()) // 2 * 2
    about = about | {"time": str(when * 10**9)}
    digest = start_hash(shape[1:], torch.uint8)
    batches = image_batches(images, make, grey=shape[1] == 1)
    with replacing(path, needed) as file, closing(batches):
        file.write(_header(shape, about | {"sha256": UNKNOWN, "sha256_labelled": UNKNOWN}))
        for batch in batches:
            content = batch.tobytes()
            digest.update(content)
            file.write(content)
        about["sha256"] = digest.hexdigest()
        if labels is not None:
            digest.update(labels.numpy())
        about["sha256_labelled"] = digest.hexdigest()
        file.seek(0)
        file.write(_header(shape, about))
        file.flush()
        os.utime(file.name, (when, when))
    print(f"{len(images):,} images are kept as pixels in {path}")
    if enlarged:
        print(f"{len(enlarged):,} images of fewer than {size} pixels were enlarged")


def _make_room(path: Path, needed: int, source: Path) -> None:
    """Remove what killed processes left of a file; OSError if there is no space for a new one."""
    for left in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        left.unlink()
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{path.parent} has {free:,} bytes free, and {source} becomes {needed:,}: free "
            "space, or set XDG_CACHE_HOME to another folder",
        )


def _header(shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    """How a safetensors file of `samples` begins: the length of a JSON object, and that object."""
    samples = {"dtype": "U8", "shape": shape, "data_offsets": (0, math.prod(shape))}
    text = json.dumps({"__metadata__": metadata, "samples": samples}).encode()
    text += b" " * (-len(text) % 8)  # the pixels begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text
