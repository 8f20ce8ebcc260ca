"""Cache decoded images as one array, memory-mapped on later use.

The cache is a safetensors file with one tensor, `samples`, and metadata about its source.
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

RECIPE = "2"  # change it whenever the same files give other pixels
UNKNOWN = "0" * 64  # placeholder until the hash is computed


def cache_folder() -> Path:
    """Return the folder of reproducible files: $XDG_CACHE_HOME/tract, or else ~/.cache/tract."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tract"


def cached_pixels(
    images: Images,
    size: int,
    labels: Tensor | None = None,
    *,
    grey: bool = False,
    enlarge: bool = False,
) -> tuple[Tensor, tuple[str, str]]:
    """Return all images as uint8 (N, C, size, size), and `Data.sha256` without and with labels.

    Converts them with `images.reduced`, unless a valid cache file for the same names, sizes and
    times exists. Pixels stay on disk until used. Raises ValueError for invalid images, OSError if
    the file cannot be written; an incomplete file is removed.
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
            found = _read(path, about)  # another process may have just written it
            if found is None:
                _build(path, images, labels, about, shape, enlarge)
                found = _read(path, about)
    return found


def _labels_hash(labels: Tensor | None) -> str:
    """Hash the labels, which dataset.json can change while the images stay the same."""
    return "" if labels is None else hashlib.sha256(labels.numpy()).hexdigest()


def _read(path: Path, about: dict[str, str]) -> tuple[Tensor, tuple[str, str]] | None:
    """Return pixels and hashes of an intact file about these images, or None."""
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
    """Convert all images into the file, in batches."""
    needed, size, enlarged = math.prod(shape), shape[-1], []
    _make_room(path, needed, images.source)

    def make(image: Image.Image) -> np.ndarray:
        pixels = reduced(image, size, enlarge=enlarge)
        if min(image.size) < size:
            enlarged.append(image.size)
        return pixels

    # An unchanged file is recognised by its time, which is set to one recorded in it: in even
    # seconds, which every file system can store.
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
    print(f"{len(images):,} images cached as pixels in {path}")
    if enlarged:
        print(f"{len(enlarged):,} images smaller than {size} pixels were enlarged")


def _make_room(path: Path, needed: int, source: Path) -> None:
    """Remove leftovers of killed processes; raises OSError if there is no space for a new file."""
    for left in path.parent.glob(f".{path.name}.*{TEMPORARY}"):
        left.unlink()
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise OSError(
            errno.ENOSPC,
            f"{path.parent} has {free:,} bytes free, but {source} needs {needed:,}: free "
            "space, or set XDG_CACHE_HOME to another folder",
        )


def _header(shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    """Return the start of a safetensors file of `samples`: a JSON object after its length."""
    samples = {"dtype": "U8", "shape": shape, "data_offsets": (0, math.prod(shape))}
    text = json.dumps({"__metadata__": metadata, "samples": samples}).encode()
    text += b" " * (-len(text) % 8)  # the pixels begin at a multiple of eight bytes
    return struct.pack("<Q", len(text)) + text
