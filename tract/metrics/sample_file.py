"""Write samples of a model to an .npz file or a .zip of PNGs, resumably.

Pixels first go behind a line that says what they are into .NAME.part, from which an interrupted
run goes on; NAME itself appears whole or not at all.
"""

import json
import os
import sys
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from tract.base.checks import check_whole
from tract.base.files import replacing
from tract.base.interrupts import interrupt_between_steps
from tract.base.parallel import any_rank, broadcast_object, rank, scatter_work
from tract.metrics.sources import Source

ENDINGS = (".npz", ".zip")
AHEAD = 4  # batches that may wait to be written, before the making of more waits for them


def write_samples(source: Source, count: int, path: str | Path, *, batch: int = 256) -> None:
    """Write the first count images of a model's source under a progress bar, or go on with that.

    An .npz holds uint8 (count, H, W, C) as arr_0, a .zip numbered PNG files: `open_source` reads
    both. Processes that have joined make the batches in turn, and the first writes. Ctrl-C and
    SIGTERM end it between batches; the next call goes on there, to the same bytes. ValueError or
    FileExistsError for what cannot be, OSError if it cannot be written, RuntimeError if another
    noise_schedule is writing it.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path} ends in none of {', '.join(ENDINGS)}: give it one of these")
    check_whole("count", count, 1)
    check_whole("batch", batch, 1)
    ((channels, height, width),) = source.shapes
    shape = (count, height, width, channels)
    card = json.dumps({"count": count, "batch": batch, "shape": shape, **source.about}).encode()
    with _only_writer(path):
        finished = broadcast_object(rank() == 0 and _is_finished(path, card))
        if not finished:
            part = path.with_name(f".{path.name}.part")
            done = broadcast_object(_begin(part, card, shape, batch) if rank() == 0 else 0)
            _make(source, part, range(done, count, batch), count)
            if rank() == 0:
                _finish(part, card, shape, path)
    if rank() == 0:
        print(f"{path}: {count:,} images" + (", finished before" if finished else ""))


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is being made, in the first process; RuntimeError if taken."""
    if rank() > 0:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is writing {path}: wait for it, stop it, or give another name"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _is_finished(path: Path, card: bytes) -> bool:
    """Whether the file is there; FileExistsError if it is another one."""
    if not path.exists():
        return False
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if archive.comment == card:
                return True
    raise FileExistsError(f"{path} exists, with other contents: give another name, or remove it")


def _begin(part: Path, card: bytes, shape: tuple[int, ...], batch: int) -> int:
    """Number of images in whole batches that are there already; ValueError if they are others."""
    header, row = card + b"\n", np.prod(shape[1:], dtype=int)
    with part.open("a+b") as file:
        file.seek(0)
        begun = file.read(len(header))
        if not header.startswith(begun):
            raise ValueError(
                f"{part} holds the beginning of other samples: give another name or the values "
                "they were begun with, or remove it"
            )
        if len(begun) < len(header):
            file.truncate(0)
            file.write(header)
            return 0
        rows = (file.seek(0, os.SEEK_END) - len(header)) // row
        done = shape[0] if rows == shape[0] else rows // batch * batch
        file.truncate(len(header) + done * row)
        return int(done)


def _make(source: Source, part: Path, starts: range, count: int) -> None:
    """Make batches of images, and add them to the part as they come."""
    batches = [(start, min(start + starts.step, count)) for start in starts]
    bar = tqdm(
        desc=f"sampling {source.name}",
        total=count,
        initial=count - sum(stop - start for start, stop in batches),
        unit="image",
        file=sys.stdout,
        mininterval=1,
        disable=rank() > 0,
    )
    with interrupt_between_steps() as stop_asked, bar, _background(part) as write:
        made = scatter_work(batches, lambda images: _rows(source, *images))
        for (start, stop), rows in zip(batches, made, strict=True):
            if rows is not None:
                write(rows)
            bar.update(stop - start)
            if any_rank(stop_asked.requested):
                raise KeyboardInterrupt


def _rows(source: Source, start: int, stop: int) -> bytes:
    """Images as the bytes of uint8 (stop - start, H, W, C)."""
    return torch.stack(list(source.read(start, stop))).permute(0, 2, 3, 1).numpy().tobytes()


@contextmanager
def _background(part: Path):
    """A function that adds bytes to the part in a thread, and waits if too many are under way."""
    pending: deque[Future] = deque()

    def append(content: bytes) -> None:
        try:
            with part.open("ab") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(
                error.errno,
                f"cannot write {part} ({error.strerror}): free space and run it again, it goes on "
                "from what is there",
            ) from error

    def write(content: bytes) -> None:
        pending.append(thread.submit(append, content))
        if len(pending) > AHEAD:
            pending.popleft().result()

    with ThreadPoolExecutor(1) as thread:
        yield write
        for under_way in pending:
            under_way.result()


def _finish(part: Path, card: bytes, shape: tuple[int, ...], path: Path) -> None:
    """Make the file of the part, and remove that."""
    with (
        part.open("rb") as file,
        replacing(path, part.stat().st_size) as target,
        zipfile.ZipFile(target, "w") as archive,
        tqdm(desc=path.name, total=shape[0], unit="image", file=sys.stdout, mininterval=1) as bar,
    ):
        archive.comment = card
        file.seek(len(card) + 1)
        add = _add_array if path.suffix == ".npz" else _add_pngs
        for count in add(archive, file, shape):
            bar.update(count)
    part.unlink()


def _add_array(archive: zipfile.ZipFile, pixels: BinaryIO, shape: tuple[int, ...]) -> Iterator[int]:
    """Add all pixels as the array arr_0 of an .npz file."""
    with archive.open("arr_0.npy", "w", force_zip64=True) as member:
        description = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, description)
        for chunk in _chunks(pixels, shape):
            member.write(chunk)
            yield len(chunk)


def _add_pngs(archive: zipfile.ZipFile, pixels: BinaryIO, shape: tuple[int, ...]) -> Iterator[int]:
    """Add every image as a PNG file under its number."""
    number = 0
    with ThreadPoolExecutor() as pool:
        for chunk in _chunks(pixels, shape):
            for png in pool.map(_png, chunk):
                archive.writestr(zipfile.ZipInfo(f"{number:06}.png"), png)  # at no time of day
                number += 1
            yield len(chunk)


def _chunks(pixels: BinaryIO, shape: tuple[int, ...], size: int = 256) -> Iterator[np.ndarray]:
    row = np.prod(shape[1:], dtype=int)
    while content := pixels.read(size * row):
        yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])


def _png(image: np.ndarray) -> bytes:
    content = BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(content, "png")
    return content.getvalue()
