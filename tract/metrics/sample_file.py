"""Write samples of a model as a folder of numbered PNG files, resumably, and pack them."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tract.base.checks import check_whole
from tract.base.files import check_new, replacing, write_atomically
from tract.base.interrupts import interrupt_between_steps
from tract.base.parallel import any_rank, broadcast_object, rank, world_size
from tract.base.progress import progress
from tract.datasets.images import png_bytes
from tract.metrics.sources import Source

CARD = "samples.json"  # in the folder: which model, steps and seed the images are of


def write_samples(source: Source, count: int, path: str | Path, *, batch: int = 256) -> None:
    """Write the first count images of a model's source under a progress bar.

    path: a folder, for 000000.png and so on; NAME.npz or NAME.zip packs those of
    the folder NAME as uint8 arr_0 (count, H, W, C), or as a zip, which `open_source` reads.
    Images that are there are not made again. Processes that have joined make and write their
    shares. Ctrl-C and SIGTERM end it between batches. ValueError for another ending or a folder of
    other samples, FileExistsError for an archive without its folder.
    """
    path = Path(path)
    if path.suffix not in ("", ".npz", ".zip"):
        raise ValueError(f"{path} is not a folder, NAME.npz or NAME.zip: give one of these")
    check_whole("count", count, 1)
    check_whole("batch", batch, 1)
    folder = path.with_suffix("")
    if rank() == 0:
        _begin(folder, path, source.about)
    missing = broadcast_object(_missing(folder, count, batch) if rank() == 0 else None)
    _make(source, folder, missing, count)
    if rank() > 0:
        return
    names = [_name(i) for i in range(count)]
    if path.suffix == ".npz":
        images = np.stack([np.asarray(Image.open(folder / name)) for name in names])
        images = images if images.ndim == 4 else images[..., None]
        with replacing(path, images.nbytes) as file:
            np.savez(file, images)
    elif path.suffix == ".zip":
        _pack(folder, names, path)
    print(f"{path}: {count:,} images" + ("" if missing else ", all made before"))


def _name(index: int) -> str:
    return f"{index:06}.png"


def _begin(folder: Path, path: Path, about: dict) -> None:
    """Leave the card of these samples in their folder, or find it there."""
    card = folder / CARD
    if not card.is_file():
        check_new(path)
        check_new(folder)
        folder.mkdir(parents=True)
        write_atomically(card, json.dumps(about, indent=1).encode())
    elif json.loads(card.read_text()) != about:
        raise ValueError(f"{folder} holds other samples, see {CARD}: give another name")


def _missing(folder: Path, count: int, batch: int) -> list[Sequence[int]]:
    """Batches of which an image is missing. They are the same wherever an earlier run ended."""
    found = {path.name for path in folder.iterdir()}
    batches = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    return [numbers for numbers in batches if any(_name(i) not in found for i in numbers)]


def _make(source: Source, folder: Path, batches: list[Sequence[int]], count: int) -> None:
    """Make and write batches of images, each process one in turn."""
    begun = {"initial": count - sum(map(len, batches)), "disable": rank() > 0}
    with (
        interrupt_between_steps() as stop,
        progress(f"sampling {source.name}", count, "image", **begun) as bar,
    ):
        for start in range(0, len(batches), world_size()):
            turn = batches[start : start + world_size()]
            if rank() < len(turn):
                mine = turn[rank()]
                for i, image in zip(mine, source.read(mine[0], mine[-1] + 1), strict=True):
                    pixels = image.permute(1, 2, 0).numpy()
                    content = png_bytes(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
                    write_atomically(folder / _name(i), content, durable=False)
            bar.update(sum(map(len, turn)))
            if any_rank(stop.requested):
                raise KeyboardInterrupt


def _pack(folder: Path, names: Sequence[str], path: Path) -> None:
    """Zip files under their names: the same bytes at any time of day."""
    size = sum((folder / name).stat().st_size for name in names)
    with replacing(path, size) as file, zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), (folder / name).read_bytes())
