"""Write files atomically, and hold the lock of a folder.

A file is written beside its final name, flushed to disk and renamed: a reader, or a process that
is killed, finds the old file or the new one, never half of one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

TEMPORARY = ".tmp"  # how names of files under way end; a killed process leaves one behind


def place(text: str | Path) -> Path:
    """A path as it was typed, with ~ for the home folder."""
    return Path(text).expanduser()


def check_new(path: Path) -> None:
    """FileExistsError if there is something that writing would replace."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: give a new name, or remove it")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Replace a file by new content, durably, or leave it as it was.

    OSError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    with replacing(path, len(content)) as file:
        file.write(content)


@contextmanager
def replacing(path: str | Path, size: int) -> Iterator[BinaryIO]:
    """A file of size bytes to be written, which takes the path's place when the block succeeds.

    OSError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {path} of {size:,} bytes ({error.strerror}); what was there "
            "before is intact: free space, correct permissions or use another folder, and run it "
            "again",
        ) from error


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, on systems and shares that can be asked."""
    with suppress(OSError):  # Windows; SMB, shared folders of virtual machines
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system frees even when its holder is killed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is writing {folder}: wait for it, stop it, or use another run_dir"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder} ({error.strerror}): use another run_dir"
        ) from error
    try:
        yield
    finally:
        lock.release()
