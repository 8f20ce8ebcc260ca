"""Write files atomically, and hold the lock of a folder.

A file is written beside its final name, flushed to disk and renamed: a reader, or a process that
is killed, finds the old file or the new one, never half of one.
"""

import errno
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


def writable(folder: Path) -> None:
    """Make a folder of the cache; OSError, with what else could be used, if that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write to {folder} ({error.strerror}): set XDG_CACHE_HOME to another folder, "
            "or give one to tract fid as --cache",
        ) from error


def check_new(path: Path) -> None:
    """FileExistsError if there is something that writing would replace."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: give a new name, or remove it")


def write_atomically(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Replace a file by new content, or leave it as it was.

    durable: so that it survives a power cut, which takes a while.

    OSError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    with replacing(path, len(content), durable) as file:
        file.write(content)


@contextmanager
def replacing(path: str | Path, size: int, durable: bool = True) -> Iterator[BinaryIO]:
    """A file of size bytes to be written, which takes the path's place when the block succeeds.

    OSError, with the remedy, where the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        try:
            with temporary.open("wb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
            if durable:
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
def only_writer(
    folder: Path, name: str = "", *, wait: bool = False, instead: str = "use another run_dir"
) -> Iterator[None]:
    """Hold the lock of a folder, or of the file of this name in it; made if missing.

    The system frees it even when its holder is killed. wait: for another process to be done, else
    RuntimeError. instead: remedy where the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / (f".{name}.lock" if name else ".lock"))
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        raise RuntimeError(
            f"another process is writing {folder}: wait for it, stop it, or use another run_dir"
        ) from error
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write to {folder} ({error.strerror}): {instead}"
        ) from error
    try:
        yield
    finally:
        lock.release()
