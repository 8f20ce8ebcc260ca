"""Write files and folders atomically, and lock a folder.

A file is written beside its final name, flushed to disk and renamed: a reader finds the old file or
the new one, never half of one, even if the writer is killed.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

TEMPORARY = ".tmp"  # suffix of unfinished files; a killed process leaves one behind
SPACE = "free space, correct permissions or use another folder, and run it again"
CACHE = "set XDG_CACHE_HOME to another folder, or give one to tract fid as --cache"


def place(text: str | Path) -> Path:
    """Return a path as typed by a user, with ~ expanded."""
    return Path(text).expanduser()


@contextmanager
def explained(action: str, remedy: str = SPACE) -> Iterator[None]:
    """Make an OSError say which action failed, such as "write FILE", and what to do."""
    try:
        yield
    except OSError as error:
        text = f"cannot {action} ({error.strerror or error}): {remedy}"
        raise (OSError(error.errno, text) if error.errno else OSError(text)) from error


def writable(folder: Path, remedy: str = CACHE) -> None:
    """Create a folder, the cache's by default; raises OSError if it cannot be written to."""
    with explained(f"write to {folder}", remedy):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_new(path: Path) -> None:
    """Raise FileExistsError if writing would replace something."""
    if path.exists():
        raise FileExistsError(f"{path} exists already: give a new name, or remove it")


def write_atomically(path: str | Path, content: bytes, durable: bool = True) -> None:
    """Replace a file by new content, or leave it unchanged; arguments as for `replacing`."""
    with replacing(path, len(content), durable) as file:
        file.write(content)


@contextmanager
def replacing(path: str | Path, size: int, durable: bool = True) -> Iterator[BinaryIO]:
    """Yield a new file of size bytes, which replaces the path when the block succeeds.

    durable: whether it must survive a power cut, which is slow. Raises OSError with the remedy.
    """
    path = Path(path)
    with explained(f"write {path} of {size:,} bytes, any old file is intact"):
        temporary = _beside(path)
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


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder, which takes its final name when the block succeeds, else is removed.

    Raises FileExistsError if the name is taken, OSError with the remedy.
    """
    check_new(folder)
    temporary = _beside(folder)
    try:
        with explained(f"write {folder}"):
            yield temporary
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")


def _sync_folder(folder: Path) -> None:
    """Make a rename in a folder survive a power cut, if the file system supports it."""
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
    """Hold the lock of a folder, or of the file of this name in it; creates the folder.

    The system releases the lock even if its holder is killed. wait: wait for another process to
    finish, else raise RuntimeError. instead: remedy if the folder cannot be written to.
    """
    from filelock import FileLock, Timeout  # slow; not needed for --help

    with explained(f"write to {folder}", instead):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / (f".{name}.lock" if name else ".lock"))
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except Timeout as error:
            raise RuntimeError(
                f"another process is writing {folder}: wait for it, stop it, or use another run_dir"
            ) from error
    try:
        yield
    finally:
        lock.release()
